"""The SQLite file under the model inheritance graph: opening, transactions, errors."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fl_unlearn.lineage_format import APPLICATION_ID, MIGRATED_FROM, SCHEMA_VERSION, create, migrate
from fl_unlearn.types import LineageError, StoreError, StoreFullError

log = logging.getLogger(__name__)

_BUSY_SECONDS = 30.0
# Pages gather in memory and in the WAL (32 MB) before they go to the file: one that changes in many commits,
# as those of the index on names do, is copied once.
_WRITER = ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 8000", "cache_size = -64000")
_FILE_TROUBLE = {"NOTADB", "CORRUPT", "CANTOPEN", "BUSY", "READONLY", "IOERR", "PERM", "PROTOCOL"}


class LineageFile:
    """The SQLite file under a `UMIG`: opening and checking it, transactions, and keyed texts."""

    def __init__(self, path: str | Path = ":memory:", *, read_only: bool = False) -> None:
        self.path, self.read_only = str(path), read_only
        self._lock, self._depth, self._doomed = threading.RLock(), 0, False
        self._open: sqlite3.Connection | None = _connect(self.path, read_only)
        try:
            # Looked at before WAL is switched on: that alone would change a file that is not ours.
            blank = self._is_blank()
            if blank and read_only:
                raise StoreError(f"'{path}' holds no lineage yet; let its writer open it first")
            version = None if blank else self._version()
            if not read_only:
                for setting in _WRITER:
                    self._rows(f"PRAGMA {setting}")
                if version != SCHEMA_VERSION:
                    self._make_current()
        except BaseException:
            self.close()
            raise

    def _is_blank(self) -> bool:
        return not self._rows("SELECT 1 FROM sqlite_master LIMIT 1")

    def _version(self) -> str | None:
        """The format's version, if this release can read it, or bring it up to date."""
        if self._rows("PRAGMA application_id") != [(APPLICATION_ID,)]:
            raise StoreError(f"'{self.path}' is an SQLite file of another program; choose another path")
        version = self.get_meta("schema_version")
        if version == MIGRATED_FROM and self.read_only:
            raise StoreError(
                f"'{self.path}' has lineage format {version}, written by an older fl-unlearn; open it once "
                f"for writing, which brings it to format {SCHEMA_VERSION}"
            )
        if version not in (SCHEMA_VERSION, MIGRATED_FROM):
            raise StoreError(
                f"'{self.path}' has lineage format {version}, this fl-unlearn knows {SCHEMA_VERSION}; "
                "upgrade fl-unlearn, or use the version that wrote the file"
            )
        return version

    def _make_current(self) -> None:
        with self.transaction():  # looked at again: another process may have been faster
            if self._is_blank():
                create(self.connection)
            elif self._version() == MIGRATED_FROM:
                log.warning("bringing %s to lineage format %s", self.path, SCHEMA_VERSION)
                migrate(self.connection)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for tables of other modules in the same file: write to it inside `transaction`."""
        if self._open is None:
            raise StoreError(f"the lineage '{self.path}' is closed; open it again")
        return self._open

    def close(self) -> None:
        """Close the file, if it is not closed yet; a LineageError inside a transaction."""
        with self._lock:
            if self._depth:
                raise LineageError("close() was called inside transaction(); leave the transaction first")
            if self._open is not None:
                self._open.close()
                self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: what is appended inside becomes visible at the end, or never after an error.

        Nested blocks belong to the outermost: an error in one undoes everything, even if it is caught further
        out. Other threads wait meanwhile; other processes go on reading the state before.

        Raises:
            LineageError: If the graph was opened read-only.
            StoreFullError: If the disk is full; nothing was changed.
            StoreError: If the file cannot be written, or an inner error was caught; nothing was changed.
        """
        if self.read_only:
            raise LineageError(f"'{self.path}' was opened read-only; open it without read_only to append")
        with self._lock, _sqlite_errors(self.path):
            outermost = self._depth == 0
            if outermost:
                self.connection.execute("BEGIN IMMEDIATE")
                self._doomed = False
            self._depth += 1
            try:
                yield
                if outermost and not self._doomed:
                    self.connection.execute("COMMIT")
            except BaseException:
                self._doomed = True
                raise
            finally:
                self._depth -= 1
                if outermost and self._doomed:
                    self._undone()
                if outermost and self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            if outermost and self._doomed:
                raise StoreError(
                    "the transaction was undone: an error inside was caught; let it pass through"
                )

    def _undone(self) -> None:
        """Forget what is remembered of the file: a transaction is being undone."""

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _sqlite_errors(self.path):
            yield self.connection

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(sql, values).fetchall()

    def get_meta(self, key: str) -> str | None:
        """The text kept under ``key``, or None."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Keep a non-empty text under ``key``, replacing what was there.

        Raises:
            LineageError: If the graph is read-only, the key is reserved, or a text cannot be kept.
        """
        if key == "schema_version":
            raise LineageError("the key 'schema_version' is the format's own; choose another key")
        row = text("a key", key), text("a value", value)
        with self.transaction():
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)


def _connect(path: str, read_only: bool) -> sqlite3.Connection:
    target = path
    if path != ":memory:":
        file = Path(path).absolute()
        if read_only and not file.exists():
            raise StoreError(
                f"there is no lineage file '{path}'; check the path, or open it without read_only"
            )
        if not file.parent.is_dir():
            raise StoreError(f"the folder of '{path}' does not exist; create it first")
        target = f"{file.as_uri()}?mode={'ro' if read_only else 'rwc'}"
        writable = os.access(file.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        if read_only and not writable and not Path(f"{file}-wal").exists():
            # Nobody is writing, and SQLite cannot make the files beside it that it reads a WAL database with.
            target += "&immutable=1"
    elif read_only:
        raise StoreError("a graph in memory starts empty, so it cannot be read-only; give a file's path")
    with _sqlite_errors(path):
        return sqlite3.connect(
            target, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )


@contextmanager
def _sqlite_errors(path: str) -> Iterator[None]:
    """Errors of the file, not of the statement, become StoreErrors."""
    try:
        yield
    except sqlite3.Error as e:
        trouble = getattr(e, "sqlite_errorname", "").split("_")[1:2]
        if trouble == ["FULL"]:
            raise StoreFullError(f"no room left for '{path}'; nothing was changed: free some space") from e
        if _FILE_TROUBLE.issuperset(trouble) and trouble:
            raise StoreError(
                f"'{path}' cannot be used: {e}; check that it is a lineage file, that it may be "
                "written, and that no other program is holding it"
            ) from e
        raise


def text(what: str, value: Any) -> str:
    """``value``, if it is a text that the file, and every export, can hold; else a LineageError."""
    if not isinstance(value, str) or not value:
        raise LineageError(f"{what} must be a non-empty text, got {value!r}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise LineageError(f"{what} must be text without NUL and half surrogate pairs, got {value!r}")
    return value
