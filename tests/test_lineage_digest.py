"""The digest of a range of the lineage: its canonical form, and that it notices every change."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

import numpy as np
import pytest
import references_lineage
from cases_lineage import federation, graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.lineage import UMIG
from fl_unlearn.lineage_edges import EDGE
from fl_unlearn.types import LineageError, StoreError

COLUMNS = ("name", "kind", "round", "owner", "examples", "digest", "metadata")
VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=3)
VALUES |= st.binary(max_size=3)


def ranges(umig: UMIG) -> dict[tuple[int, int], str]:
    half = len(umig) // 2
    return {span: umig.digest(*span) for span in ((1, half), (half + 1, len(umig)), (1, len(umig)))}


@settings(max_examples=80, deadline=None)
@given(graphs(), st.data())
def test_the_digest_is_that_of_the_canonical_form(pair, data):
    umig, _ = pair
    if len(umig):
        first = data.draw(st.integers(1, len(umig)))
        last = data.draw(st.integers(first, len(umig)))
        rows = umig.connection.execute(
            "SELECT * FROM node WHERE id BETWEEN ? AND ?", (first, last)
        ).fetchall()
        edges = [
            (child, umig.node(parent).id, weight)
            for child, name, *_ in rows
            for parent, weight in umig.parents(name).items()
        ]
        assert umig.digest(first, last) == references_lineage.digest(rows, edges)


def test_the_digest_does_not_depend_on_how_the_graph_was_written(tmp_path):
    one, many = federation(tmp_path / "u", rounds=2), UMIG()
    for node in one:
        values = {
            key: getattr(node, key) for key in ("kind", "round", "owner", "examples", "digest", "metadata")
        }
        many.add(node.name, parents=one.parents(node.name), **values)
    assert ranges(one) == ranges(many)
    before = one.digest(3, 7)
    one.add("later", kind="stage", round=9, parents={"g2": 1.0})
    assert one.digest(3, 7) == before


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.sampled_from(COLUMNS), VALUES)
def test_a_changed_column_is_noticed(id_, column, value):
    umig = federation(rounds=2)
    before = ranges(umig)
    old = umig.connection.execute("SELECT * FROM node WHERE id = ?", (id_,)).fetchall()
    try:
        umig.connection.execute(f"UPDATE node SET {column} = ? WHERE id = ?", (value, id_))
    except sqlite3.IntegrityError:
        return
    if umig.connection.execute("SELECT * FROM node WHERE id = ?", (id_,)).fetchall() == old:
        return
    after = ranges(umig)
    assert [before[span] != after[span] for span in before] == [span[0] <= id_ <= span[1] for span in before]


@pytest.mark.parametrize("how", ["deleted", "swapped", "not UTF-8"])
def test_removed_reordered_and_broken_nodes_are_noticed(how):
    umig = federation(rounds=2)
    before = umig.digest(1, 9)
    if how == "deleted":
        umig.connection.execute("DELETE FROM node WHERE id = 4")
    elif how == "swapped":
        umig.connection.execute("UPDATE node SET id = CASE id WHEN 3 THEN -4 ELSE -3 END WHERE id IN (3, 4)")
        umig.connection.execute("UPDATE node SET id = -id WHERE id < 0")
    else:
        umig.connection.execute("UPDATE node SET owner = CAST(X'ff' AS TEXT) WHERE id = 4")
        with pytest.raises(StoreError, match="is damaged"):
            umig.digest(1, 9)
        return
    assert umig.digest(1, 9) != before


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 12 * 24 * 8 - 1))
def test_every_bit_of_the_edges_counts(bit):
    umig = federation(rounds=2)
    before = umig.digest(1, 9)
    block = umig.connection.execute("SELECT first, edges FROM edge_block ORDER BY first").fetchall()
    at, (first, raw) = next(
        (offset, row)
        for i, row in enumerate(block)
        if (offset := bit - 8 * sum(len(r[1]) for r in block[:i])) < 8 * len(row[1])
    )
    changed = bytearray(raw)
    changed[at // 8] ^= 1 << at % 8
    umig.connection.execute("UPDATE edge_block SET edges = ? WHERE first = ?", (bytes(changed), first))
    with suppress(StoreError):  # which is a way to notice it too
        assert umig.digest(1, 9) != before


def test_an_added_and_a_removed_edge_are_noticed():
    umig = federation(rounds=2)
    before = umig.digest(1, 9)
    edges = umig.edges()
    extra = np.array([(9, 1, 0.0)], EDGE)
    for changed in (
        edges[:-1],
        edges[1:],
        np.sort(np.concatenate([edges, extra]), order=["child", "parent"]),
    ):
        umig.connection.execute("DELETE FROM edge_block")
        row = (int(changed["child"][0]), int(changed["child"][-1]), int(changed["parent"].min()))
        umig.connection.execute("INSERT INTO edge_block VALUES (?, ?, ?, ?)", (*row, changed.tobytes()))
        assert umig.digest(1, 9) != before
    umig.connection.execute("DELETE FROM edge_block")
    assert umig.digest(1, 9) != before


def test_a_range_must_be_there():
    umig = federation(rounds=1)
    for first, last in ((0, 1), (1, 6), (3, 2), (-1, -1)):
        with pytest.raises(LineageError, match="no range within 1 to 5"):
            umig.digest(first, last)
