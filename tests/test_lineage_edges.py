"""Blocks of edges: how they are joined and cut, walks over them, and damage."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from cases_lineage import federation, names

from fl_unlearn import lineage_edges
from fl_unlearn.lineage import UMIG
from fl_unlearn.lineage_edges import EDGE
from fl_unlearn.types import StoreError


def blocks(umig: UMIG) -> list[tuple[int, int, int, int]]:
    """First and last child, oldest parent and number of edges of each block."""
    sql = "SELECT first, last, oldest, length(edges) / 24 FROM edge_block ORDER BY first"
    return umig.connection.execute(sql).fetchall()


def chain(length: int, path: object = ":memory:") -> UMIG:
    umig = UMIG(path)
    parents = [{f"n{i - 1}": 1.0} if i else {} for i in range(length)]
    umig.add_many([f"n{i}" for i in range(length)], kind="stage", round=0, parents=parents)
    return umig


def test_many_single_appends_leave_few_blocks():
    umig = UMIG()
    umig.add("n0", kind="stage", round=0)
    with umig.transaction():
        for i in range(1, 3001):
            umig.add(f"n{i}", kind="stage", round=0, parents={f"n{i - 1}": 1.0})
            assert len(blocks(umig)) <= 12 + i // 1024  # as the ones in a binary number
    assert [size for *_, size in blocks(umig)[:2]] == [1024, 1024]
    assert sum(size for *_, size in blocks(umig)) == 3000
    assert umig.edges().tolist() == [(i + 1, i, 1.0) for i in range(1, 3001)]


def test_a_large_batch_is_cut_between_children(monkeypatch):
    monkeypatch.setattr(lineage_edges, "_BLOCK", 4)
    umig = UMIG()
    umig.add_many(list("abcdef"), kind="stage", round=0)
    above = [dict.fromkeys(letters, 1.0) for letters in ("ab", "abc", "abcdef", "f", "", "a")]
    umig.add_many(list("ghijkl"), kind="stage", round=0, parents=above)
    assert blocks(umig) == [(7, 7, 1, 2), (8, 8, 1, 3), (9, 9, 1, 6), (10, 12, 1, 2)]
    assert [list(umig.parents(name)) for name in "ghijkl"] == [list(mapping) for mapping in above]
    assert list(umig.children("f")) == ["i", "j"]
    assert umig.edges(8, 10).tolist() == [
        (c, p, 1.0) for c, n in ((8, 3), (9, 6)) for p in range(1, n + 1)
    ] + [(10, 6, 1.0)]


@pytest.mark.parametrize("length", [2, 3, 4, 5, 50, 3000])
def test_a_chain_longer_than_the_passes_is_followed_to_its_end(length):
    umig = chain(length)
    known = [f"n{i}" for i in range(length)]
    assert names(umig.descendants(["n0"])) == known[1:]
    assert names(umig.ancestors(known[-1:])) == known[:-1]
    middle = length // 2
    assert names(umig.affected(known[middle : middle + 1])) == known[middle:]
    assert names(umig.descendants([known[-1], "n0"])) == known[1:]


def test_pages_with_gaps_and_without(monkeypatch):
    monkeypatch.setattr("fl_unlearn.lineage._PAGE", 4)
    umig = federation(rounds=4)
    assert names(umig.nodes(kind="aggregate")) == ["g1", "g2", "g3", "g4"]
    assert names(umig.affected(["u2.1"])) == ["u2.1", *names(umig.affected(["g2"]))]


# --------------------------------------------------------------------------- damage
def _edit(**changes):
    def spoil(connection: sqlite3.Connection) -> None:
        for column, value in changes.items():
            connection.execute(f"UPDATE edge_block SET {column} = ? WHERE first <= 4", (value,))

    return spoil


def _edges(**changes):
    def spoil(connection: sqlite3.Connection) -> None:
        (raw,) = connection.execute("SELECT edges FROM edge_block WHERE first = 2").fetchone()
        edges = np.frombuffer(raw, EDGE).copy()
        for column, (at, value) in changes.items():
            edges[column][at] = value
        connection.execute("UPDATE edge_block SET edges = ? WHERE first = 2", (edges.tobytes(),))

    return spoil


def _overlap(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO edge_block SELECT 3, last, oldest, edges FROM edge_block WHERE first = 2")
    connection.execute("UPDATE edge_block SET edges = (SELECT edges FROM edge_block WHERE first = 3)")


@pytest.mark.parametrize(
    "spoil",
    [
        _edit(edges=b""),
        _edit(edges=b"12345"),
        _edit(edges="text"),
        _edit(edges=5),
        _edit(last=9),
        _edit(last=3),
        _edit(oldest=2),
        _edges(child=(0, 10**6)),
        _edges(child=(-1, 10**6)),
        _edges(child=(1, 2**62)),
        _edges(parent=(1, 4)),
        _edges(parent=(1, 0)),
        _edges(parent=(1, -(2**62))),
        _overlap,
    ],
)
def test_damaged_blocks_are_found_and_reported(spoil):
    umig = federation(rounds=1)
    assert blocks(umig) == [(2, 5, 1, 6)]
    with umig.transaction():
        spoil(umig.connection)
    for look in (
        lambda: umig.descendants(["g0"]),
        lambda: umig.ancestors(["g1"]),
        lambda: umig.edges(),
        lambda: umig.digest(1, 5),
    ):
        with pytest.raises(StoreError, match="is damaged"):
            look()


def test_a_damaged_tail_is_not_built_upon():
    umig = federation(rounds=1)
    with umig.transaction():
        _edit(edges=b"123")(umig.connection)
    with pytest.raises(StoreError, match="is damaged"):
        umig.add_many(["a", "b"], kind="stage", round=9, parents={"g1": 1.0, "g0": 1.0})
    assert len(umig) == 5


@pytest.mark.parametrize(("first", "last", "oldest"), [(1, 4, ""), (1, 4, b"x"), (1, 0, 1), (1, 4, "1x")])
def test_a_row_more_that_a_query_could_pass_over_is_found(first, last, oldest):
    umig = chain(5)
    (edges,) = umig.connection.execute("SELECT edges FROM edge_block").fetchone()
    umig.connection.execute("INSERT INTO edge_block VALUES (?, ?, ?, ?)", (first, last, oldest, edges))
    with pytest.raises(StoreError, match="is damaged"):
        umig.edges()
