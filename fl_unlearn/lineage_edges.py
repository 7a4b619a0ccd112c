"""The edges of the lineage in its file: blocks of packed records in chronological order, and walks over them.

A block holds all edges of some consecutive children, sorted by child, then parent. A parent is always older
than its child, so one pass over the blocks in order finds all descendants, and one in the opposite order all
ancestors: a walk needs two bytes a node and one block at a time, and no adjacency is kept in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_unlearn.types import StoreError

Edges = NDArray[np.void]
EDGE = np.dtype([("child", "<i8"), ("parent", "<i8"), ("weight", "<f8")])
EDGE_TABLE = """CREATE TABLE edge_block (first INTEGER PRIMARY KEY, last INTEGER NOT NULL,
    oldest INTEGER NOT NULL, edges BLOB NOT NULL)"""  # first and last child, oldest parent, EDGE records
_BLOCK = 1024  # edges in a block, unless one child has more
_PASSES = 3  # numpy passes over a block; a chain inside it that needs more is followed edge by edge
_ANY = 2**63 - 1


def append_edges(connection: sqlite3.Connection, edges: Edges) -> None:
    """Store the edges of nodes newer than every child so far; sorted by child, then parent.

    Small blocks at the end are joined with what comes, a block only with one at least as large, so that many
    small appends cost little and leave no more blocks than a few large ones.
    """
    while len(edges):
        tail = connection.execute(
            "SELECT first, length(edges) FROM edge_block ORDER BY first DESC LIMIT 1"
        ).fetchone()
        if tail is None or tail[1] > edges.nbytes or tail[1] + edges.nbytes > _BLOCK * EDGE.itemsize:
            break
        before = connection.execute("SELECT * FROM edge_block WHERE first = ?", tail[:1]).fetchone()
        connection.execute("DELETE FROM edge_block WHERE first = ?", tail[:1])
        edges = np.concatenate([_unpacked(*before), edges])
    for block in _split(edges):
        child, oldest = block["child"], block["parent"].min()
        row = int(child[0]), int(child[-1]), int(oldest), block.tobytes()
        connection.execute("INSERT INTO edge_block VALUES (?, ?, ?, ?)", row)


def _split(edges: Edges) -> Iterator[Edges]:
    """Cut into blocks, the edges of one child in one block."""
    child, start = np.ascontiguousarray(edges["child"]), 0
    while start < len(edges):
        end = min(start + _BLOCK, len(edges))
        if end < len(edges):
            left, right = (int(np.searchsorted(child, child[end], side)) for side in ("left", "right"))
            end = left if left > start else right
        yield edges[start:end]
        start = end


def read_edges(
    connection: sqlite3.Connection, first: int, last: int, *, newest_first: bool = False, parent: int = _ANY
) -> Iterator[Edges]:
    """The edges of the children with ids from ``first`` to ``last``, a block at a time.

    With ``parent``, blocks that cannot have edges of that node are left out.

    Raises:
        StoreError: If a block was changed by something else and makes no sense.
    """
    rows = connection.execute(
        "SELECT first, last, oldest, edges FROM edge_block "
        "WHERE first >= (SELECT ifnull(max(first), 0) FROM edge_block WHERE first <= ?1) AND first <= ?2 "
        # Rows that make no sense are read too, and refused: text is above every number for SQLite.
        "AND (last >= ?1 OR last < first) AND (oldest <= ?3 OR typeof(oldest) <> 'integer') "
        f"ORDER BY first {'DESC' if newest_first else ''}",
        (first, last, parent),
    )
    before: tuple[int, int] | None = None
    for row in rows:
        start, end = row[:2]
        if before is not None and (end >= before[0] if newest_first else start <= before[1]):
            raise _damaged(start, end)
        before = start, end
        edges = _unpacked(*row)
        if start < first or end > last:
            edges = edges[(edges["child"] >= first) & (edges["child"] <= last)]
        yield edges


def _unpacked(first: int, last: int, oldest: int, raw: Any) -> Edges:
    try:
        edges = np.frombuffer(raw, EDGE)
    except (TypeError, ValueError):
        raise _damaged(first, last) from None
    child, parent = edges["child"], edges["parent"]
    if not (
        len(edges)
        and (child[0], child[-1]) == (first, last)
        and parent.min() == oldest >= 1
        and (child[1:] >= child[:-1]).all()
        and (parent < child).all()
    ):
        raise _damaged(first, last)
    return edges


def _damaged(first: Any, last: Any) -> StoreError:
    return StoreError(
        f"the lineage file is damaged: the edges of the nodes {first} to {last} were changed by something "
        "else; restore the file from a backup"
    )


def walk(
    connection: sqlite3.Connection, starts: NDArray[np.int64], last: int, *, back: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which nodes descend from ``starts`` (``back``: which they descend from), over weights above 0.

    Args:
        connection: Of the file.
        starts: Ids of nodes.
        last: Newest id to look at.
        back: Walk from children to parents.

    Returns:
        Two masks over the ids 0 to ``last``: the nodes reached, and those with the starts themselves.
    """
    live, reached = bytearray(last + 1), bytearray(last + 1)
    np.frombuffer(live, np.bool_)[starts] = True
    if len(starts):
        span = (1, int(starts.max())) if back else (int(starts.min()) + 1, last)
        for edges in read_edges(connection, *span, newest_first=back):
            followed = edges["weight"] > 0
            edges = edges if followed.all() else edges[followed]
            child, parent = edges["child"], edges["parent"]
            _spread(live, reached, *((child[::-1], parent[::-1]) if back else (parent, child)))
    return np.frombuffer(reached, np.bool_), np.frombuffer(live, np.bool_)


def _spread(
    live: bytearray, reached: bytearray, source: NDArray[np.int64], target: NDArray[np.int64]
) -> None:
    """Mark the targets of live sources, and theirs; an edge into a node comes before the edges out of it."""
    is_live, is_reached = np.frombuffer(live, np.bool_), np.frombuffer(reached, np.bool_)
    for _ in range(_PASSES):
        hit = target[is_live[source]]
        is_reached[hit] = True
        if is_live[hit].all():
            return
        is_live[hit] = True
    for s, t in zip(source.tolist(), target.tolist(), strict=True):
        if live[s]:
            live[t] = reached[t] = 1
