"""The audit log: what was done to a store, as a chain of SHA-256 hashes in the file of its lineage.

An entry is written in the transaction of what it tells of, so that neither is there without the other. Each
holds the hash of the one before it: whoever changes, removes, inserts or reorders one must rewrite all that
follow, and cannot sign them without the key. What is cut off at the end leaves no trace inside; the newest
entry's hash is therefore also written to a file where the operator says, after each commit.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fl_unlearn.audit_entry import START, Entry, canonical, parse_row, plain, read_head, write_head
from fl_unlearn.audit_keys import PublicKey as PublicKey
from fl_unlearn.audit_keys import SigningKey as SigningKey
from fl_unlearn.lineage import UMIG
from fl_unlearn.types import AuditError, StoreError

log = logging.getLogger(__name__)

AUDIT_TABLES = """
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT);
"""
_ROWS = "SELECT seq, time, kind, body, previous, hash, signature FROM audit"
_FORMAT = 1


class AuditLog:
    """The log of one store.

    Args:
        umig: The graph whose file holds the log.
        key: Signs every entry from now on; once a log is signed, it is not written to without a key.
        head: File to which the newest entry's number and hash are written after each commit.
    """

    def __init__(self, umig: UMIG, *, key: SigningKey | None = None, head: Path | None = None) -> None:
        self.umig, self._key = umig, key
        self._head = None if head is None else Path(head).absolute()
        self._signer: SigningKey | None = None
        self._published = 0
        self._recording = self._started = False
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    # ------------------------------------------------------------------ writing
    def start(self, adopt: Callable[[], Mapping[str, Any] | None]) -> None:
        """Begin the log, or go on with it; before anything is appended.

        Args:
            adopt: Gives what a store holds that was written before it had a log; None when nothing.

        Raises:
            AuditError: If the log is signed and no key was given, or if the head file belongs to another
                store or does not fit the log.
        """
        with self.umig.transaction():
            last = self.head()
            self._check_head_file(last)
            if last is None:
                made_by = {"format": _FORMAT, "fl_unlearn": _version()}
                self._write(1, "created", {"store": uuid.uuid4().hex, **made_by}, START)
                if (found := adopt()) is not None:
                    self.append("adopted", found)
            announced = self._announced()
            if self._key is None and announced is not None:
                raise AuditError(
                    f"the audit log of '{self.umig.path}' is signed (key {announced[:16]}); "
                    "give its signing_key, or a new one, to write to this store"
                )
            self._started, self._signer = True, self._key
            if self._key and (public := self._key.public).fingerprint != announced:
                self.append("key", {"public_key": public.pem(), "fingerprint": public.fingerprint})

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """`UMIG.transaction`, with the head published after the outermost."""
        with self.umig.transaction():
            yield
        self.publish()

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry; in a transaction it is part of that, otherwise one of its own.

        Raises:
            AuditError: If JSON cannot hold the body, or the log has not been started.
            LineageError: If the store was opened read-only.
        """
        with self.transaction():
            last = self.head()
            if last is None:
                raise AuditError(f"the audit log of '{self.umig.path}' has not begun; open its RunStore")
            return self._write(last.seq + 1, kind, body, last.hash)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """One "recorded" entry for all nodes appended inside the outermost of these blocks.

        Inside a transaction: the entry is part of it.
        """
        outermost, self._recording = not self._recording, True
        first = len(self.umig) + 1
        try:
            yield
            if outermost and (last := len(self.umig)) >= first:
                kept = self.umig.connection.execute(
                    "SELECT n.name, c.digest, c.size FROM checkpoint c JOIN node n ON n.id = c.node_id "
                    "WHERE c.node_id >= ?",
                    (first,),
                ).fetchall()
                checkpoints = {name: [digest, size] for name, digest, size in kept}
                lineage = self.umig.digest(first, last)
                body = {"first": first, "last": last, "lineage": lineage, "checkpoints": checkpoints}
                self.append("recorded", body)
        finally:
            if outermost:
                self._recording = False

    def publish(self) -> None:
        """Write the newest committed entry to the head file, unless a transaction is going on.

        The file is then at most as new as the database. When it cannot be written, that is logged and
        nothing else: an older head is still true.
        """
        if self._head is None or not self._started:
            return
        try:
            connection = self.umig.connection
        except StoreError:  # closed, and published then
            return
        if connection.in_transaction:
            return
        try:
            with self.umig.transaction():  # holds off other threads: the last entry is a committed one
                entry = self.head()
                if entry is not None and entry.seq != self._published:
                    write_head(self._head, self.store_id, entry)
                    self._published = entry.seq
        except StoreError as e:
            log.warning("the head of the audit log was not written to %s: %s", self._head, e)

    def _write(self, seq: int, kind: str, body: Mapping[str, Any], previous: str) -> Entry:
        time = self.clock().astimezone(UTC).isoformat(timespec="milliseconds")
        unsigned = Entry(seq, time, kind, plain(dict(body)), previous, "", None)
        hash_ = unsigned.content_hash()
        signature = self._signer.sign(self.store_id, hash_) if self._signer else None
        row = (seq, time, kind, canonical(unsigned.body), previous, hash_, signature)
        self.umig.connection.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return Entry(seq, time, kind, unsigned.body, previous, hash_, signature)

    # ------------------------------------------------------------------ reading
    def entries(self, first: int = 1) -> Generator[Entry, None, None]:
        """The entries from number ``first`` on, in order.

        Raises:
            AuditError: If there is no log, or an entry was changed.
        """
        for row in self.rows(first):
            yield self._entry(row)

    def rows(self, first: int = -(2**63)) -> Iterator[tuple[Any, ...]]:
        """The table's rows as they are, unchecked, from number ``first`` on, in order.

        Raises:
            AuditError: If there is no log.
        """
        if not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchall():
            raise AuditError(
                f"'{self.umig.path}' has no audit log; opened once for writing with this version, it gets one"
            )
        yield from self._execute(f"{_ROWS} WHERE seq >= ? ORDER BY seq", first)

    def holds(self, kind: str, body: Mapping[str, Any]) -> bool:
        """Whether an entry says exactly that."""
        said = canonical(plain(dict(body)))
        found = self._execute("SELECT 1 FROM audit WHERE kind = ? AND body = ? LIMIT 1", kind, said)
        return found.fetchone() is not None

    def head(self) -> Entry | None:
        """The newest entry; None while there is none."""
        row = self._execute(f"{_ROWS} ORDER BY seq DESC LIMIT 1").fetchone()
        return None if row is None else self._entry(row)

    @property
    def store_id(self) -> str:
        """The random name that the store got when its log began."""
        first = next(self.entries(), None)
        if first is None or not isinstance(first.body.get("store"), str):
            raise AuditError(f"the audit log of '{self.umig.path}' lacks its first entry")
        return str(first.body["store"])

    def _announced(self) -> str | None:
        """Fingerprint of the newest key that was announced."""
        row = self._execute(f"{_ROWS} WHERE kind = 'key' ORDER BY seq DESC LIMIT 1").fetchone()
        return None if row is None else str(self._entry(row).body.get("fingerprint"))

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        try:
            return parse_row(row)
        except ValueError as e:
            raise AuditError(
                f"entry {row[0]} of the audit log of '{self.umig.path}' was changed: {e}; "
                "verify the store, and restore it from a backup"
            ) from e

    def _check_head_file(self, last: Entry | None) -> None:
        if self._head is None or not os.path.exists(self._head):
            return
        head = read_head(self._head)
        move = "move the file away, or choose another"
        if last is None or head["store"] != self.store_id:
            raise AuditError(f"{self._head} is the head of another audit log; {move}")
        at = next(self.entries(head["seq"]), None)
        if at is None or (at.seq, at.hash) != (head["seq"], head["hash"]):
            raise AuditError(
                f"the audit log of '{self.umig.path}' lacks entry {head['seq']} that {self._head} tells of: "
                f"entries were removed or changed, or the store is an older copy. Verify it; to go on, {move}"
            )

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)


def _version() -> str:
    try:
        return version("fl-unlearn")
    except PackageNotFoundError:
        return "unknown"
