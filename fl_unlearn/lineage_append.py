"""Appending to the lineage's file: nodes, edges and owners of a batch, or nothing of it."""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_unlearn.lineage_batch import Batch, Parents, known_texts, link
from fl_unlearn.lineage_edges import append_edges
from fl_unlearn.lineage_file import LineageFile
from fl_unlearn.types import LineageError

_REMEMBERED = 10_000  # names and owners kept in memory, to save looking up what was written a moment ago
_VARIABLES = 900  # in one statement; SQLite before 3.32 took no more than 999
NAMES = "(SELECT value FROM json_each(?))"
_NEW_OWNER = """INSERT INTO owner VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET examples = excluded.examples
    WHERE examples IS NULL OR excluded.examples > examples"""


class LineageAppender(LineageFile):
    """The part of a `UMIG` that appends, and that finds the names it needs for that."""

    def __init__(self, path: str | Path = ":memory:", *, read_only: bool = False) -> None:
        self._recent: dict[str, int] = {}  # ids of names appended lately
        self._recent_round = -(2**63)  # their highest round
        self._counted: dict[str, int] = {}  # owners in the table, with at least so many examples; -1: none
        super().__init__(path, read_only=read_only)

    def _undone(self) -> None:
        self._recent.clear()
        self._counted.clear()

    def _append(self, batch: Batch, parents: Parents) -> range:
        with self._lock:
            if self._depth:
                return self._write(batch, parents)
            with self.transaction():
                return self._write(batch, parents)

    def _write(self, batch: Batch, parents: Parents) -> range:
        first = len(self) + 1
        ids = range(first, first + len(batch.names))
        if not ids:
            return ids
        edges = link(batch, first, parents, self._look)
        try:
            self._insert(batch, ids)
            append_edges(self.connection, edges)
            self._count(batch)
        except LineageError:
            raise
        except BaseException:
            self._doomed = True  # some of it may be there without the rest
            raise
        self._remember(batch, ids)
        return ids

    def _insert(self, batch: Batch, ids: range) -> None:
        # Statements of many rows that share their kind and round take half the time of one a node.
        columns = [ids, batch.names, *batch.columns.values()]
        names = ", ".join(("id", "name", *batch.columns))
        values = ", ".join(f"column{i}" for i in range(1, len(columns) + 1))
        row, rows = f"(?{', ?' * (len(columns) - 1)})", _VARIABLES // len(columns)
        try:
            for at in range(0, len(ids), rows):
                part = [column[at : at + rows] for column in columns]
                sql = f"SELECT ?1, ?2, {values} FROM (VALUES {', '.join([row] * len(part[0]))})"
                shared = (batch.kind, batch.round)
                self.connection.execute(
                    f"INSERT INTO node (kind, round, {names}) {sql}",
                    [*shared, *chain.from_iterable(zip(*part, strict=True))],
                )
        except sqlite3.IntegrityError:
            self.connection.execute("DELETE FROM node WHERE id >= ?", (ids[0],))
            raise LineageError(self._taken(batch.names)) from None

    def _taken(self, names: list[str]) -> str:
        sql = f"SELECT name FROM node WHERE name IN {NAMES} ORDER BY id LIMIT 1"
        (name,) = self._rows(sql, json.dumps(names))[0]
        return f"there is a node '{name}' already; choose a name that is free"

    def _count(self, batch: Batch) -> None:
        """Keep the table of owners what a scan over the nodes would find."""
        owners = batch.columns.get("owner")
        if owners is None:
            return
        examples = batch.columns.get("examples", [None] * len(owners))
        counts = [-1 if n is None else n for n in examples] if None in examples else examples
        new: dict[str, int] = {}
        counted = self._counted.get
        for owner, n in zip(owners, counts, strict=True):
            if counted(owner, -2) < n and owner is not None and new.get(owner, -2) < n:
                new[owner] = n
        if new:
            rows = ((owner, None if n < 0 else n) for owner, n in new.items())
            self.connection.executemany(_NEW_OWNER, rows)
            if len(self._counted) + len(new) > _REMEMBERED:
                self._counted.clear()
            self._counted.update(new)

    def _remember(self, batch: Batch, ids: range) -> None:
        if len(self._recent) + len(ids) > _REMEMBERED:
            self._recent.clear()
        if len(ids) <= _REMEMBERED:
            self._recent.update(zip(batch.names, ids, strict=True))
            self._recent_round = max(self._recent_round, batch.round)

    # ----------------------------------------------------------------------- finding names
    def __len__(self) -> int:
        return int(self._rows("SELECT ifnull(max(id), 0) FROM node")[0][0])

    def _find(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Id and round of each of ``names``, in chronological order."""
        wanted = known_texts(names)
        rows = self._rows(
            f"SELECT name, id, round FROM node WHERE name IN {NAMES} ORDER BY id", json.dumps(wanted)
        )
        found = {name: (id_, made) for name, id_, made in rows}
        for name in wanted:
            if name not in found:
                near = "SELECT name FROM (SELECT name FROM node WHERE name {} LIMIT 100)"
                above, below = near.format(">= ?1 ORDER BY name"), near.format("< ?1 ORDER BY name DESC")
                known = [row[0] for row in self._rows(f"{above} UNION {below}", name)]
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else "add it first, or check the name"
                raise LineageError(f"there is no node '{name}'; {hint}")
        return found

    def _look(self, names: list[str], round_: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Ids and rounds of ``names``; no rounds where none can be above ``round_``."""
        try:
            if self._recent_round <= round_:
                return np.array(list(map(self._recent.__getitem__, names)), np.int64), None
        except KeyError:
            pass
        found = self._find(names)
        ids, rounds = np.array([found[name] for name in names], np.int64).reshape(-1, 2).T
        return ids, rounds
