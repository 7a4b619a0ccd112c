"""The ledger of updates that were decided: which checkpoints they change, and which clients still wait.

An operation is one transaction. What follows it, putting files in place and updating digests, can be
repeated, so that a crash in between is finished by `OperationLedger.finish` at the next start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fl_unlearn.audit import AuditLog
from fl_unlearn.audit_entry import canonical, plain
from fl_unlearn.lineage import UMIG
from fl_unlearn.store import CheckpointStore
from fl_unlearn.tensor_file import FileInfo

log = logging.getLogger(__name__)

OPERATION_TABLES = """
CREATE TABLE IF NOT EXISTS operation (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, client_update TEXT NOT NULL, request TEXT NOT NULL,
    done INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS application (
    operation_id INTEGER NOT NULL REFERENCES operation(id), node_id INTEGER NOT NULL REFERENCES node(id),
    before TEXT NOT NULL, after TEXT NOT NULL, size INTEGER NOT NULL, segments BLOB NOT NULL,
    PRIMARY KEY (operation_id, node_id));
CREATE TABLE IF NOT EXISTS outstanding (
    operation_id INTEGER NOT NULL REFERENCES operation(id), client TEXT NOT NULL,
    PRIMARY KEY (operation_id, client));
"""

# Only where the ledger still has the digest from before: an operation that is taken up again must not
# touch checkpoints that it, and perhaps others after it, changed long ago.
_PENDING = (
    "FROM application a JOIN operation o ON o.id = a.operation_id JOIN node n ON n.id = a.node_id "
    "JOIN checkpoint c ON c.node_id = a.node_id AND c.digest = a.before WHERE o.done = 0"
)

_WRITERS = 8  # files put in place at a time: mostly waiting for the disk


@dataclass(frozen=True)
class StagedFile:
    """The successor of one checkpoint, written but not yet in place."""

    name: str
    node_id: int
    before: FileInfo
    after: FileInfo


@dataclass(frozen=True)
class Operation:
    """One decided operation: its digest, that of the update which clients apply, and what was asked."""

    digest: str
    client_update: str
    request: dict[str, Any]


class OperationLedger:
    """Decided operations, in the same SQLite file as the UMIG.

    Args:
        umig: The graph whose file holds the ledger.
        checkpoints: The checkpoints that operations change.
        audit: The log in which decisions, applications and receipts are written.
    """

    def __init__(self, umig: UMIG, checkpoints: CheckpointStore, audit: AuditLog) -> None:
        self.umig, self.checkpoints, self.audit = umig, checkpoints, audit

    def decide(
        self,
        digest: str,
        client_update: str,
        request: Mapping[str, Any],
        staged: Iterable[StagedFile],
        clients: Iterable[str],
    ) -> None:
        """Decide for an operation whose files are all staged; `finish` puts them in place.

        An operation decided before (the same digest) is taken up again: checkpoints that it had missed
        and clients are added to it.

        Args:
            digest: Name of the operation (the update's digest, when there is one update).
            client_update: Digest of the update that clients apply to their copies.
            request: What was asked, for the record.
            staged: The staged files.
            clients: Clients that still have to be told.
        """
        staged, clients, request = list(staged), list(clients), plain(dict(request))
        files = {s.name: [s.before.digest, s.after.digest, s.after.size] for s in staged}
        said = {"update": client_update, "request": request, "checkpoints": files, "clients": clients}
        with self.audit.transaction():
            self.audit.append("decided", {"operation": digest, **said})
            self._execute(
                "INSERT INTO operation (digest, client_update, request, done) VALUES (?, ?, ?, 0) "
                "ON CONFLICT (digest) DO UPDATE SET done = 0",
                digest,
                client_update,
                canonical(request),
            )
            (operation,) = self._execute("SELECT id FROM operation WHERE digest = ?", digest).fetchone()
            for s in staged:
                row = (operation, s.node_id, s.before.digest, s.after.digest, s.after.size, s.after.segments)
                self._execute("INSERT INTO application VALUES (?, ?, ?, ?, ?, ?)", *row)
            for client in clients:
                self._execute("INSERT OR IGNORE INTO outstanding VALUES (?, ?)", operation, client)

    def finish(self) -> None:
        """Put in place what was decided and not yet done.

        Raises:
            StoreError: If a file cannot be put in place; what is left can be finished later.
        """
        undone = self._execute("SELECT id, digest FROM operation WHERE done = 0 ORDER BY id").fetchall()
        for operation, digest in undone:
            rows = self._execute(
                f"SELECT n.name, a.node_id, a.after, a.size, a.segments {_PENDING} AND a.operation_id = ?",
                operation,
            ).fetchall()
            with ThreadPoolExecutor(_WRITERS) as pool:
                for _ in pool.map(self.checkpoints.promote, (name for name, *_ in rows)):
                    pass
            # Before the ledger says so: after a power cut the renames must not be missing.
            self.checkpoints.sync()
            with self.audit.transaction():
                self.audit.append("applied", {"operation": digest})
                for _, node_id, *after in rows:
                    self._execute(
                        "UPDATE checkpoint SET digest = ?, size = ?, segments = ? WHERE node_id = ?",
                        *after,
                        node_id,
                    )
                self._execute("UPDATE application SET segments = x'' WHERE operation_id = ?", operation)
                self._execute("UPDATE operation SET done = 1 WHERE id = ?", operation)

    def pending(self) -> set[str]:
        """Names of the models whose decided successor is not in place yet."""
        return {name for (name,) in self._execute(f"SELECT n.name {_PENDING}")}

    def settle(self, digest: str, client: str, receipts: Sequence[str] = ()) -> None:
        """Note that a client has applied the update of an operation; ``receipts`` are its own words."""
        with self.audit.transaction():
            self.audit.append("receipt", {"operation": digest, "client": client, "texts": list(receipts)})
            self._execute(
                "DELETE FROM outstanding WHERE client = ? AND operation_id = "
                "(SELECT id FROM operation WHERE digest = ?)",
                client,
                digest,
            )

    def note_attempt(self, digest: str, client: str, reason: str, receipts: Sequence[str] = ()) -> bool:
        """Note that a client could not apply the update of an operation to some copy, so that it still waits.

        Returns:
            Whether that is new: a client is asked at every contact, and mostly says the same again.
        """
        said = {"operation": digest, "client": client, "reason": reason, "texts": list(receipts)}
        if self.audit.holds("attempt", said):
            return False
        log.warning("client %s has not applied update %s everywhere: %s", client, digest[:12], reason)
        self.audit.append("attempt", said)
        return True

    def outstanding(self) -> dict[str, list[Operation]]:
        """Client to the operations it has not confirmed yet, oldest first."""
        known = {operation.digest: operation for operation in self.all()}
        out: dict[str, list[Operation]] = {}
        for client, digest in self._execute(
            "SELECT o.client, p.digest FROM outstanding o JOIN operation p ON p.id = o.operation_id "
            "ORDER BY p.id, o.client"
        ):
            out.setdefault(client, []).append(known[digest])
        return out

    def all(self) -> list[Operation]:
        """Every decided operation, oldest first."""
        rows = self._execute("SELECT digest, client_update, request FROM operation ORDER BY id")
        return [Operation(digest, update, json.loads(request)) for digest, update, request in rows]

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)
