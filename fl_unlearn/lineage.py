"""UMIG, the unified model inheritance graph: which model inherits from which, in one SQLite file.

After "Parallel Unlearning in Inherited Model Networks" (arXiv 2408.08493). The graph only grows, and a parent
is always there before its child: ids rise in chronological order and no cycle can be written. An edge of
weight 0 is kept but not followed, since nothing was inherited over it. Exports are in `lineage_io`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_unlearn.lineage_append import NAMES, LineageAppender
from fl_unlearn.lineage_batch import checked, known_texts
from fl_unlearn.lineage_edges import EDGE, Edges, read_edges, walk
from fl_unlearn.lineage_file import text
from fl_unlearn.types import LineageError, StoreError

_PAGE = 1000  # nodes read at a time while streaming
_NODE = "SELECT id, name, kind, round, owner, examples, digest, metadata FROM node "
# A blob, which only another program can have put there, becomes a list, which no text does.
_canonical = json.JSONEncoder(separators=(",", ":"), default=lambda blob: [blob.hex()]).encode


class NodeKind:
    """The kinds of nodes that are recorded here; any other non-empty text is a kind too.

    ``TRAINED`` is a model trained outside of federated rounds (`model_graph`).
    """

    INITIAL = "initial"
    CLIENT_UPDATE = "client-update"
    AGGREGATE = "aggregate"
    TRAINED = "trained"


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


class UMIG(LineageAppender):
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
        batch = checked([name], kind, round, [owner], [examples], [digest], [metadata])
        ids = self._append(batch, [parents])
        owner_, examples_, digest_, extra = (column[0] for column in batch.columns.values())
        return _node((ids[0], name, kind, batch.round, owner_, examples_, digest_, extra))

    def add_many(
        self,
        names: Iterable[str],
        *,
        kind: str,
        round: int,
        parents: Mapping[str, float] | Sequence[Mapping[str, float]] = {},
        owners: Iterable[str | None] | None = None,
        examples: Iterable[int | None] | None = None,
        digests: Iterable[str | None] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> range:
        """Append nodes of one kind and round, in the order of ``names``; the same as `add` for each, faster.

        Args:
            names: Their names.
            kind: Of all of them.
            round: Of all of them.
            parents: One mapping of names to weights for all, or a list with one for each node. A parent is
                a node that is there already, or one that comes earlier in ``names``.
            owners: One for each node, None where it has none; or None. So are the others.
            examples: Numbers of samples.
            digests: Of the checkpoints.
            metadata: Anything else, as JSON holds it.

        Returns:
            The ids of the new nodes.

        Raises:
            LineageError: As `add`; no node of the batch is appended then.
            StoreError: If the file cannot be written.
        """
        return self._append(checked(names, kind, round, owners, examples, digests, metadata), parents)

    # ----------------------------------------------------------------------- looking
    def node(self, name: str) -> Node:
        """The node of that name; LineageError when there is none."""
        return next(self._stream(self._ids_of([name])))

    def __contains__(self, name: object) -> bool:
        try:
            return bool(self._rows("SELECT 1 FROM node WHERE name = ?", text("a name", name)))
        except LineageError:
            return False

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
        ((id_, _),) = self._find([name]).values()
        return self._named(self.edges(id_, id_), "parent")

    def children(self, name: str) -> dict[str, float]:
        """Names and weights of the models that were made from ``name``, weight 0 included, oldest first."""
        ((id_, _),) = self._find([name]).values()
        with self._reading() as connection:
            blocks = read_edges(connection, id_ + 1, len(self), parent=id_)
            edges = np.concatenate([np.empty(0, EDGE), *(block[block["parent"] == id_] for block in blocks)])
        return self._named(edges, "child")

    def _named(self, edges: Edges, end: str) -> dict[str, float]:
        names = [node.name for node in self._stream(edges[end])]
        return dict(zip(names, edges["weight"].tolist(), strict=True))

    def edges(self, first: int = 1, last: int | None = None) -> Edges:
        """The edges into the nodes with ids from ``first`` to ``last`` (None: the newest).

        Returns:
            Records of ``child`` and ``parent`` (ids) and ``weight``, 24 bytes each, sorted by child, parent.
        """
        with self._reading() as connection:
            blocks = read_edges(connection, first, len(self) if last is None else last)
            return np.concatenate([np.empty(0, EDGE), *blocks])

    def last(self, kind: str) -> Node | None:
        """The newest node of that kind, or None."""
        return next(map(_node, self._rows(f"{_NODE} WHERE kind = ? ORDER BY id DESC LIMIT 1", kind)), None)

    def last_round(self) -> int:
        """The highest round so far, -1 when the graph is empty."""
        return int(self._rows("SELECT ifnull(max(round), -1) FROM node")[0][0])

    def owners(self) -> list[str]:
        """All owners, sorted."""
        return [row[0] for row in self._rows("SELECT name FROM owner ORDER BY name")]

    def has_owner(self, owner: str) -> bool:
        """Whether a node of that owner is recorded."""
        return bool(self._rows("SELECT 1 FROM owner WHERE name = ?", text("an owner", owner)))

    def owner_examples(self) -> dict[str, int]:
        """Each owner's largest number of examples; owners without any are left out."""
        return dict(self._rows("SELECT name, examples FROM owner WHERE examples IS NOT NULL ORDER BY name"))

    def ancestors(self, names: Iterable[str]) -> Iterator[Node]:
        """Everything that one of ``names`` inherits from, in chronological order; each node once."""
        reached, _ = self._walk(self._ids_of(names), back=True)
        return self._stream(np.flatnonzero(reached))

    def descendants(self, names: Iterable[str], *, include_self: bool = False) -> Iterator[Node]:
        """Everything that inherits from one of ``names``, in chronological order; each node once.

        One of ``names`` that inherits from another is a descendant too; ``include_self`` adds the others.
        """
        reached, live = self._walk(self._ids_of(names))
        return self._stream(np.flatnonzero(live if include_self else reached))

    def _walk(
        self, starts: NDArray[np.int64], back: bool = False
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        with self._reading() as connection:  # a node that comes meanwhile is left out, and so are its edges
            return walk(connection, starts, len(self), back=back)

    def roots(self, owners: Iterable[str]) -> list[Node]:
        """The paper's initial unlearning models: the first models trained by ``owners``.

        That is, their client updates, and models trained outside of rounds, that do not descend from another
        one of theirs. An owner without any has none.
        """
        sql = f"SELECT id FROM node WHERE kind IN (?, ?) AND owner IN {NAMES} ORDER BY id"
        known = json.dumps(known_texts(owners, "an owner"))
        starts = self._ids(sql, NodeKind.CLIENT_UPDATE, NodeKind.TRAINED, known)
        reached, _ = self._walk(starts)
        return list(self._stream(starts[~reached[starts]]))

    def affected(self, roots: Iterable[str]) -> Iterator[Node]:
        """The roots and everything that inherits from them, in chronological order."""
        return self.descendants(roots, include_self=True)

    def digest(self, first: int, last: int) -> str:
        """SHA-256 (hex) of the nodes with ids ``first`` to ``last`` and of the edges into them, as stored.

        It is that of two SHA-256 digests (32 bytes each, one after the other). The first is of the nodes, by
        id: each a JSON array ``[id,name,kind,round,owner,examples,digest,metadata]`` in ASCII without spaces,
        null where there is none, metadata as the text that the file has, and a line feed. The second is of
        the edges, by child, then parent: each 24 bytes little-endian, both ids as int64, weight as float64.

        Raises:
            LineageError: If there are no such nodes.
            StoreError: If the file is damaged.
        """
        newest = len(self)
        if not 1 <= first <= last <= newest:
            raise LineageError(f"the ids {first} to {last} are no range within 1 to {newest}")
        nodes, edges = hashlib.sha256(), hashlib.sha256()
        with self._reading() as connection:
            try:
                for row in connection.execute(f"{_NODE} WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)):
                    nodes.update(_canonical(row).encode() + b"\n")
            except sqlite3.OperationalError as e:
                if "UTF-8" not in str(e):
                    raise
                raise StoreError(f"'{self.path}' is damaged: {e}; restore it from a backup") from e
            for block in read_edges(connection, first, last):
                edges.update(block.tobytes())
        return hashlib.sha256(nodes.digest() + edges.digest()).hexdigest()

    def _ids_of(self, names: Iterable[str]) -> NDArray[np.int64]:
        return np.array([id_ for id_, _ in self._find(names).values()], np.int64)

    def _ids(self, sql: str, *values: Any) -> NDArray[np.int64]:
        # 8 bytes a node: looked up once, and no cursor stays open, however slowly the nodes are taken.
        with self._reading() as connection:
            return np.fromiter((row[0] for row in connection.execute(sql, values)), np.int64)

    def _stream(self, ids: NDArray[np.int64]) -> Iterator[Node]:
        """The nodes with these ids, which rise."""
        for at in range(0, len(ids), _PAGE):
            page = ids[at : at + _PAGE].tolist()
            if page[-1] - page[0] == len(page) - 1:
                rows = self._rows(f"{_NODE} WHERE id BETWEEN ? AND ? ORDER BY id", page[0], page[-1])
            else:
                rows = self._rows(f"{_NODE} WHERE id IN {NAMES} ORDER BY id", json.dumps(page))
            yield from map(_node, rows)


def _node(row: tuple[Any, ...]) -> Node:
    id_, name, kind, round_, owner, examples, digest, extra = row
    return Node(id_, name, kind, round_, owner, examples, digest, json.loads(extra) if extra else {})
