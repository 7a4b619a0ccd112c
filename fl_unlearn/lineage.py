"""UMIG, the unified model inheritance graph: which model inherits from which, in one SQLite file.

After "Parallel Unlearning in Inherited Model Networks" (arXiv 2408.08493). The graph only grows, and a parent
is always there before its child: ids rise in chronological order and no cycle can be written. An edge of
weight 0 is kept but not followed, since nothing was inherited over it. Exports are in `lineage_io`.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from fl_unlearn.lineage_file import LineageFile, text
from fl_unlearn.types import LineageError

_PAGE = 1000  # nodes read at a time while streaming
_NODE = "SELECT id, name, kind, round, owner, examples, digest, metadata FROM node "
_NAMES = "(SELECT value FROM json_each(?))"
# UNION visits a node once however many paths lead to it; CROSS JOIN keeps SQLite from scanning all edges.
_WALK = """WITH RECURSIVE start(id) AS ({start}), reached(id) AS (
    SELECT edge.{to} FROM start CROSS JOIN edge ON edge.{by} = start.id WHERE edge.weight > 0 UNION
    SELECT edge.{to} FROM reached CROSS JOIN edge ON edge.{by} = reached.id WHERE edge.weight > 0) """


class NodeKind:
    """The kinds of a federation's nodes; any other non-empty text is a kind too (a stage, a worker...)."""

    INITIAL = "initial"
    CLIENT_UPDATE = "client-update"
    AGGREGATE = "aggregate"


@dataclass(frozen=True)
class Node:
    """One version of one model.

    Attributes:
        id: Position in chronological order, from 1 up without gaps.
        name: Unique name.
        kind: One of `NodeKind`, or any other text.
        round: Round in which it was made, never lower than a parent's.
        owner: The client that trained it, or None.
        examples: How many samples it was trained on, or None.
        digest: SHA-256 (hex) of its checkpoint as first written, or None when none was kept.
        metadata: Anything else, as JSON holds it (tuples come back as lists).
    """

    id: int
    name: str
    kind: str
    round: int
    owner: str | None
    examples: int | None
    digest: str | None
    metadata: Mapping[str, Any] = field(hash=False)


class UMIG(LineageFile):
    """The model inheritance graph, in a file or in memory. A context manager; usable from several threads.

    Args:
        path: The SQLite file, made when it is not there, or ``":memory:"``.
        read_only: Only look, also while another connection writes. Appending is refused.

    Raises:
        StoreError: If the file is missing (``read_only``), no SQLite file, another program's, or newer.
    """

    # ----------------------------------------------------------------------- appending
    def add(
        self,
        name: str,
        *,
        kind: str,
        round: int,
        parents: Mapping[str, float] = {},
        owner: str | None = None,
        examples: int | None = None,
        digest: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Node:
        """Append a node (see `Node`) with the edges from its parents: name to weight, finite and >= 0.

        In a `transaction` it is part of that, otherwise one of its own.

        Raises:
            LineageError: If the name is taken, a parent unknown or newer, or a value cannot be kept. Nothing
                is appended then, and a transaction around it can go on.
            StoreError: If the file cannot be written.
        """
        values = (
            text("a name", name),
            text("a kind", kind),
            _integer("a round", round),
            None if owner is None else text("an owner", owner),
            None if examples is None else _integer("the number of examples", examples, least=0),
            None if digest is None else text("a digest", digest),
            _json(metadata),
        )
        with self._lock:
            if self._depth:
                return self._append(values, parents)
            with self.transaction():
                return self._append(values, parents)

    def _append(self, values: tuple[Any, ...], parents: Mapping[str, float]) -> Node:
        edges = self._edges(values[0], values[2], parents)
        try:
            into_node = "INSERT INTO node VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)"
            id_ = self.connection.execute(into_node, values).lastrowid
            into_edge = "INSERT INTO edge (child, parent, weight) VALUES (?, ?, ?)"
            self.connection.executemany(into_edge, ((id_, parent, weight) for parent, weight in edges))
        except sqlite3.IntegrityError:
            raise LineageError(f"there is a node '{values[0]}' already; choose a name that is free") from None
        except BaseException:
            self._doomed = True  # the node may be there without its edges
            raise
        return _node((id_, *values))

    def _edges(self, name: str, round_: int, parents: Mapping[str, float]) -> list[tuple[int, float]]:
        if not isinstance(parents, Mapping):
            raise LineageError(f"parents must map names to weights, such as {{'g0': 1.0}}; got {parents!r}")
        if name in parents:
            raise LineageError(f"'{name}' cannot inherit from itself; leave it out of its parents")
        edges = []
        for parent, (id_, made) in self._find(parents).items():
            if round_ < made:
                raise LineageError(
                    f"'{name}' (round {round_}) would be older than its parent '{parent}' (round {made}); "
                    "a child's round must not be lower"
                )
            edges.append((id_, _weight(parents[parent], f"from '{parent}' to '{name}'")))
        return edges

    # ----------------------------------------------------------------------- looking
    def _find(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Id and round of each of ``names``, in chronological order."""
        wanted = _names(names)
        rows = self._rows(
            f"SELECT name, id, round FROM node WHERE name IN {_NAMES} ORDER BY id", json.dumps(wanted)
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

    def node(self, name: str) -> Node:
        """The node of that name; LineageError when there is none."""
        return next(self._stream(array("q", (id_ for id_, _ in self._find([name]).values()))))

    def __contains__(self, name: object) -> bool:
        try:
            return bool(self._rows("SELECT 1 FROM node WHERE name = ?", text("a name", name)))
        except LineageError:
            return False

    def __len__(self) -> int:
        return int(self._rows("SELECT ifnull(max(id), 0) FROM node")[0][0])

    def __iter__(self) -> Iterator[Node]:
        return self.nodes()

    def nodes(
        self, *, kind: str | None = None, owner: str | None = None, round: int | None = None
    ) -> Iterator[Node]:
        """The nodes of that kind, owner and round (None: any) that are there now, in chronological order."""
        wanted = {"kind": kind, "owner": owner, "round": round}
        chosen = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in chosen) or "1"
        return self._stream(self._ids(f"SELECT id FROM node WHERE {where} ORDER BY id", *chosen.values()))

    def parents(self, name: str) -> dict[str, float]:
        """Names and weights of the models that ``name`` was made from, weight 0 included, oldest first."""
        return self._neighbours(name, "parent", "child")

    def children(self, name: str) -> dict[str, float]:
        """Names and weights of the models that were made from ``name``, weight 0 included, oldest first."""
        return self._neighbours(name, "child", "parent")

    def _neighbours(self, name: str, to: str, by: str) -> dict[str, float]:
        ((id_, _),) = self._find([name]).values()
        sql = f"SELECT name, weight FROM edge JOIN node ON id = {to} WHERE {by} = ? ORDER BY {to}"
        return dict(self._rows(sql, id_))

    def last(self, kind: str) -> Node | None:
        """The newest node of that kind, or None."""
        return next(map(_node, self._rows(f"{_NODE} WHERE kind = ? ORDER BY id DESC LIMIT 1", kind)), None)

    def last_round(self) -> int:
        """The highest round so far, -1 when the graph is empty."""
        return int(self._rows("SELECT ifnull(max(round), -1) FROM node")[0][0])

    def owners(self) -> list[str]:
        """All owners, sorted."""
        return [
            r[0] for r in self._rows("SELECT DISTINCT owner FROM node WHERE owner IS NOT NULL ORDER BY owner")
        ]

    def ancestors(self, names: Iterable[str]) -> Iterator[Node]:
        """Everything that one of ``names`` inherits from, in chronological order; each node once."""
        return self._walk(names, "parent", "child", "")

    def descendants(self, names: Iterable[str], *, include_self: bool = False) -> Iterator[Node]:
        """Everything that inherits from one of ``names``, in chronological order; each node once.

        One of ``names`` that inherits from another is a descendant too; ``include_self`` adds the others.
        """
        return self._walk(names, "child", "parent", "SELECT id FROM start UNION " if include_self else "")

    def _walk(self, names: Iterable[str], to: str, by: str, also: str) -> Iterator[Node]:
        starts = json.dumps([id_ for id_, _ in self._find(names).values()])
        walk = _WALK.format(start="SELECT value FROM json_each(?)", to=to, by=by)
        return self._stream(self._ids(f"{walk} {also} SELECT id FROM reached ORDER BY id", starts))

    def roots(self, owners: Iterable[str]) -> list[Node]:
        """The paper's initial unlearning models: the first updates of ``owners``.

        That is, their client updates that do not descend from another client update of theirs. An owner
        without updates has none.
        """
        start = f"SELECT id FROM node WHERE kind = ? AND owner IN {_NAMES}"
        sql = (
            _WALK.format(start=start, to="child", by="parent")
            + "SELECT id FROM start EXCEPT SELECT id FROM reached"
        )
        return list(
            self._stream(self._ids(sql, NodeKind.CLIENT_UPDATE, json.dumps(_names(owners, "an owner"))))
        )

    def affected(self, roots: Iterable[str]) -> Iterator[Node]:
        """The roots and everything that inherits from them, in chronological order."""
        return self.descendants(roots, include_self=True)

    def _stream(self, ids: array[int]) -> Iterator[Node]:
        for at in range(0, len(ids), _PAGE):
            page = json.dumps(ids[at : at + _PAGE].tolist())
            yield from map(_node, self._rows(f"{_NODE} WHERE id IN {_NAMES} ORDER BY id", page))


def _names(names: Iterable[str], what: str = "a name") -> list[str]:
    return [text(what, n) for n in ([names] if isinstance(names, str) else names)]


def _integer(what: str, value: Any, least: int = -(2**63)) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise LineageError(f"{what} must be a whole number, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise LineageError(f"{what} must fit into 64 bits, got a number of {number.bit_length()} bits")
    if number < least:
        raise LineageError(f"{what} must be {least} or more, got {number}")
    return number


def _weight(value: Any, where: str) -> float:
    try:
        weight = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        weight = math.inf
    if not (math.isfinite(weight) and weight >= 0):
        raise LineageError(f"the weight of the edge {where} must be a finite number from 0 up, got {value!r}")
    return weight


def _json(metadata: Mapping[str, Any] | None) -> str | None:
    if metadata is not None and not (
        isinstance(metadata, Mapping) and all(isinstance(key, str) for key in metadata)
    ):
        raise LineageError(f"metadata must be a mapping with text keys, got {metadata!r}")
    try:
        return json.dumps(dict(metadata), allow_nan=False) if metadata else None
    except (TypeError, ValueError, RecursionError) as e:
        raise LineageError(f"metadata must be something JSON can hold ({e}); leave such values out") from e


def _node(row: tuple[Any, ...]) -> Node:
    id_, name, kind, round_, owner, examples, digest, extra = row
    return Node(id_, name, kind, round_, owner, examples, digest, json.loads(extra) if extra else {})
