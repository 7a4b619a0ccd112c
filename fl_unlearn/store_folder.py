"""The folder of a run: opened by one writer at a time, brought up to date, and put in order after a crash.

``lineage.sqlite`` holds the UMIG, the ledger of checkpoints and operations, the audit log, the logs of runs
and of request documents. Beside it are ``updates/``, what an interrupted run needs to go on (`run_log`),
``inbox/`` (documents that wait), and ``checkpoints/`` unless these are kept at another address.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import IO, Any, Self

from fl_unlearn.audit import AUDIT_TABLES, AuditLog, SigningKey
from fl_unlearn.audit_entry import text_digest
from fl_unlearn.audit_replay import snapshot
from fl_unlearn.document_log import DOCUMENT_TABLES, DocumentLog
from fl_unlearn.files import make_folder, open_files, remove_partial
from fl_unlearn.inbox import Inbox
from fl_unlearn.lineage import UMIG
from fl_unlearn.lock import lock_folder
from fl_unlearn.migrate import migrate_checkpoints
from fl_unlearn.operations import OPERATION_TABLES, OperationLedger
from fl_unlearn.request_log import REQUEST_TABLES
from fl_unlearn.run_log import RUN_TABLES, RunLog
from fl_unlearn.store import CheckpointStore, KeepPolicy
from fl_unlearn.types import StoreError

log = logging.getLogger(__name__)

DATABASE = "lineage.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS checkpoint (
    node_id INTEGER PRIMARY KEY REFERENCES node(id), digest TEXT NOT NULL, size INTEGER NOT NULL,
    segments BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS alias (owner TEXT PRIMARY KEY, client TEXT NOT NULL);
"""


def make_tables(umig: UMIG) -> None:
    """Make the tables of a run beside the lineage's, where they are not there yet."""
    tables = (_TABLES, OPERATION_TABLES, AUDIT_TABLES, RUN_TABLES, REQUEST_TABLES, DOCUMENT_TABLES)
    for statement in filter(str.strip, ";".join(tables).split(";")):
        umig.connection.execute(statement)


class StoreFolder:
    """What `RunStore` opens; see there for the arguments."""

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: KeepPolicy | None = None,
        read_only: bool = False,
        checkpoints: str | None = None,
        wait: float = 0.0,
        signing_key: str | Path | None = None,
        audit_head: str | Path | None = None,
    ) -> None:
        if "://" in str(folder):
            raise StoreError(
                f"the ledger of a run is an SQLite file and needs a local disk, got {str(folder)!r}; use "
                f"RunStore('some/folder', checkpoints={str(folder)!r}) to keep the checkpoints there"
            )
        key = SigningKey.load(signing_key) if signing_key is not None and not read_only else None
        self.folder = Path(folder).absolute()
        self.keep = keep or KeepPolicy()
        self._written: list[list[str]] = []  # for each round that is open, the outermost first
        self._lock = None if read_only else self._take(wait)
        if read_only and not (self.folder / DATABASE).is_file():
            raise StoreError(f"{self.folder} has no {DATABASE}: it is not the store of a run. Check the path")
        try:
            self.umig = self._open(read_only)
            self.audit = AuditLog(
                self.umig, key=key, head=Path(audit_head) if audit_head is not None else None
            )
            self.checkpoints = CheckpointStore(self._address(checkpoints) or self.folder / "checkpoints")
            self.operations = OperationLedger(self.umig, self.checkpoints, self.audit)
            self.documents, self.inbox = DocumentLog(self.umig, self.audit), Inbox(self.folder)
            self._prepare(read_only)
            self.runs = RunLog(self.umig, self.folder)
        except BaseException:
            self.close()  # or the lock would be held for as long as the error is
            raise

    def _take(self, wait: float) -> IO[str]:
        try:
            make_folder(self.folder)
            make_folder(self.folder / "updates")
            return lock_folder(self.folder, wait)
        except OSError as e:
            raise StoreError(f"cannot make the store {self.folder}: {e.strerror or e}") from e

    def _open(self, read_only: bool) -> UMIG:
        try:
            return UMIG(self.folder / DATABASE, read_only=read_only)
        except (sqlite3.Error, UnicodeDecodeError) as e:  # the latter: of a message about a damaged schema
            raise StoreError(f"{self.folder / DATABASE} is damaged ({e}); restore it from a backup") from e

    def _address(self, given: str | None) -> str | None:
        """Where the checkpoints are, when they are not in the folder."""
        known = self.umig.get_meta("checkpoints")
        if given is None or given == known:
            return known
        there = known or str(self.folder / "checkpoints")
        if open_files(given).address == there:  # kept is the whole path of a local one, however it is given
            return known
        if known is not None or len(self.umig):
            raise StoreError(
                f"the checkpoints of {self.folder} are at {there}, not at {given}; leave out the address, or "
                "use another folder for a new run"
            )
        return given

    def _prepare(self, read_only: bool) -> None:
        if read_only:
            if not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'outstanding'").fetchall():
                raise StoreError(
                    f"{self.folder} holds a lineage, but no run was stored there. Check the path"
                )
            return
        with self.umig.transaction():
            migrate_checkpoints(self.umig, self.checkpoints, make_tables)
            make_tables(self.umig)
            self.audit.start(lambda: snapshot(self.umig))
            default = str(self.folder / "checkpoints")
            if self.checkpoints.address not in (default, self.umig.get_meta("checkpoints")):
                if self.checkpoints.files.names():
                    raise StoreError(
                        f"{self.checkpoints.address} holds files already, and a run tidies the place of its "
                        "checkpoints; give each run an address of its own"
                    )
                self.set_meta("checkpoints", self.checkpoints.address)
        self.recover()
        self.audit.publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database, and let others write."""
        if hasattr(self, "umig"):
            if hasattr(self, "audit"):
                self.audit.publish()
            self.umig.close()
        if self._lock is not None:
            self._lock.close()

    def set_meta(self, key: str, value: str) -> None:
        """`UMIG.set_meta`, with an entry in the audit log."""
        with self.audit.transaction():
            self.umig.set_meta(key, value)
            self.audit.append("noted", {"key": key, "value_sha256": text_digest(value)})

    def kept(self) -> set[str]:
        """Names of the models that have a checkpoint."""
        query = "SELECT n.name FROM checkpoint c JOIN node n ON n.id = c.node_id"
        return {r[0] for r in self._execute(query)}

    def recover(self) -> None:
        """Finish committed operations, and remove the files of those that were never committed."""
        remove_partial(self.folder / "updates")
        self.checkpoints.remove_partial()
        self.operations.finish()
        for name in sorted(self.checkpoints.staged_names()):
            log.warning("undoing an application that was interrupted before it was decided: %s", name)
            self.checkpoints.discard(name)
        for name in sorted(self.checkpoints.names() - self.kept()):
            if self.checkpoints.ours(name):
                log.warning("removing a checkpoint of a round that was never recorded: %s", name)
                self.checkpoints.delete(name)
            else:
                log.warning("%s is not this program's; it stays as it is", self.checkpoints.where(name))

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)
