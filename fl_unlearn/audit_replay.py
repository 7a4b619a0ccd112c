"""The ledger's tables as the audit log tells of them, to compare with the tables as they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from fl_unlearn.audit_entry import canonical, text_digest
from fl_unlearn.document_log import FIELDS
from fl_unlearn.lineage import UMIG

# Checkpoints by the name of their node, since that is what entries call them by.
_QUERIES = {
    "checkpoint": "SELECT ifnull(n.name, t.node_id), t.digest, t.size "
    "FROM checkpoint t LEFT JOIN node n ON n.id = t.node_id",
    "operation": "SELECT id, digest, client_update, request, done FROM operation",
    "application": "SELECT t.operation_id, ifnull(n.name, t.node_id), t.before, t.after, t.size "
    "FROM application t LEFT JOIN node n ON n.id = t.node_id",
    "outstanding": "SELECT operation_id, client FROM outstanding",
    "alias": "SELECT owner, client FROM alias",
    "meta": "SELECT key, value FROM meta WHERE key IS NOT 'schema_version'",
    "document": f"SELECT seq, ticket, {', '.join(FIELDS)}, content FROM document",
}
TABLES = tuple(_QUERIES)
"""Tables that the log tells of row by row."""

Rows = list[tuple[Any, ...]]


def read_table(connection: sqlite3.Connection, table: str) -> Rows:
    """One of `TABLES` as it is: nodes by their names, values of ``meta`` and documents by digest."""
    rows = connection.execute(_QUERIES[table]).fetchall()
    if table == "meta":
        return [(key, text_digest(v) if isinstance(v, str) else f"not a text: {v!r}") for key, v in rows]
    if table == "document":
        return [(*row, _content_digest(content)) for *row, content in rows]
    return rows


def _content_digest(content: Any) -> str | None:
    if content is None or isinstance(content, bytes):
        return None if content is None else sha256(content).hexdigest()
    return f"not bytes: {content!r}"


def snapshot(umig: UMIG) -> dict[str, Any] | None:
    """Body of the "adopted" entry: all that a store holds which has no log yet; None when that is nothing."""
    tables = {table: [list(r) for r in read_table(umig.connection, table)] for table in TABLES}
    last = len(umig)
    if not last and not any(tables.values()):
        return None
    return {"first": 1, "last": last, "lineage": umig.digest(1, last) if last else "", "tables": tables}


@dataclass
class Decided:
    """One operation: what was decided, and what became of it.

    Attributes:
        id: Its number in the ledger.
        client_update: Digest of the update that clients apply.
        request: What was asked, as the ledger's text.
        done: Whether the checkpoints' successors are in place.
        files: Name of a checkpoint to its digest before and after, and its size after.
        waiting: Clients that have not confirmed the update.
    """

    id: int
    client_update: str
    request: str
    done: bool = False
    files: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)


class Replay:
    """What the tables hold after the entries that `apply` was given.

    Attributes:
        ranges: First and last node id and lineage digest of everything recorded, in order.
        checkpoints: Name to digest and size.
        operations: Digest to operation.
        updates: Digest of an update that was kept to the SHA-256 of its file.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, str]] = []
        self.checkpoints: dict[str, tuple[Any, ...]] = {}
        self.operations: dict[str, Decided] = {}
        self.updates: dict[str, str] = {}
        self._alias: dict[str, str] = {}
        self._meta: dict[str, str] = {}
        self._documents: dict[str, dict[str, Any]] = {}
        self._known = {
            "recorded": self._recorded,
            "adopted": self._adopted,
            "noted": self._noted,
            "pruned": self._pruned,
            "identified": self._identified,
            "kept": self._kept,
            "decided": self._decided,
            "applied": self._applied,
            "receipt": self._receipt,
            "document": self._document,
        }

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Take up one entry; kinds that change no table are passed over.

        Raises:
            LookupError, TypeError, ValueError: If the body is not as this version writes it.
        """
        if kind in self._known:
            self._known[kind](body)

    def table(self, name: str) -> Rows:
        """The rows that one of `TABLES` must have, as `read_table` gives them."""
        operations = self.operations.items()
        rows: dict[str, Rows] = {
            "checkpoint": [(n, *info) for n, info in self.checkpoints.items()],
            "operation": [(o.id, d, o.client_update, o.request, int(o.done)) for d, o in operations],
            "application": [(o.id, n, *info) for _, o in operations for n, info in o.files.items()],
            "outstanding": [(o.id, client) for _, o in operations for client in o.waiting],
            "alias": [*self._alias.items()],
            "meta": [*self._meta.items()],
            "document": [
                (seq, ticket, *(d.get(name) for name in FIELDS), d.get("sha256") if d.get("kept") else None)
                for seq, (ticket, d) in enumerate(self._documents.items(), start=1)
            ],
        }
        return rows[name]

    def _recorded(self, body: Mapping[str, Any]) -> None:
        self.ranges.append((body["first"], body["last"], body["lineage"]))
        self.checkpoints |= {n: (digest, size) for n, (digest, size) in body["checkpoints"].items()}

    def _adopted(self, body: Mapping[str, Any]) -> None:
        if body["last"]:
            self.ranges.append((body["first"], body["last"], body["lineage"]))
        tables = body["tables"]
        self.checkpoints = {n: (digest, size) for n, digest, size in tables["checkpoint"]}
        self.operations = {d: Decided(i, u, r, bool(done)) for i, d, u, r, done in tables["operation"]}
        by_id = {o.id: o for o in self.operations.values()}
        for id_, name, *info in tables["application"]:
            by_id[id_].files[name] = tuple(info)
        for id_, client in tables["outstanding"]:
            by_id[id_].waiting.add(client)
        self._alias, self._meta = dict(tables["alias"]), dict(tables["meta"])
        # Not there in the log of an older version.
        for _, ticket, *values, kept in tables.get("document", ()):
            said = dict(zip(FIELDS, values, strict=True))
            self._documents[ticket] = {**said, "kept": kept is not None}

    def _noted(self, body: Mapping[str, Any]) -> None:
        self._meta[body["key"]] = body["value_sha256"]

    def _pruned(self, body: Mapping[str, Any]) -> None:
        for name in body.get("checkpoints", ()):
            del self.checkpoints[name]
        for digest in body.get("updates", ()):
            self.updates.pop(digest, None)  # one from before the log is not known here

    def _identified(self, body: Mapping[str, Any]) -> None:
        owner, client = body["owner"], body["client"]
        if body["recorded"]:
            self._alias[owner] = client
        for operation in self.operations.values():
            if owner in operation.waiting:
                operation.waiting = operation.waiting - {owner} | {client}

    def _kept(self, body: Mapping[str, Any]) -> None:
        self.updates[body["update"]] = body["sha256"]

    def _decided(self, body: Mapping[str, Any]) -> None:
        number = max((o.id for o in self.operations.values()), default=0) + 1
        fresh = Decided(number, body["update"], canonical(body["request"]))
        operation = self.operations.setdefault(body["operation"], fresh)
        operation.done = False
        operation.files |= {
            n: (before, after, size) for n, (before, after, size) in body["checkpoints"].items()
        }
        operation.waiting |= set(body["clients"])

    def _applied(self, body: Mapping[str, Any]) -> None:
        operation = self.operations[body["operation"]]
        operation.done = True
        for name, (before, after, size) in operation.files.items():
            # As `OperationLedger.finish`: not those that it changed before, and others after it.
            if self.checkpoints.get(name, ("",))[0] == before:
                self.checkpoints[name] = (after, size)

    def _receipt(self, body: Mapping[str, Any]) -> None:
        if body["operation"] in self.operations:
            self.operations[body["operation"]].waiting.discard(body["client"])

    def _document(self, body: Mapping[str, Any]) -> None:
        said = {name: body[name] for name in (*FIELDS, "kept") if name in body}
        self._documents.setdefault(body["document"], {}).update(said)
