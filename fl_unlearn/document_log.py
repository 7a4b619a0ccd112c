"""What became of the request documents that were taken in: a table in the UMIG's file.

Every acceptance and refusal, and every change of state after it, is written in one transaction with its entry
in the audit log, so that `audit_verify` notices a row that was removed or changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from fl_unlearn.audit import AuditLog
from fl_unlearn.lineage import UMIG

ACCEPTED, COMMITTED, DECLINED = "accepted", "committed", "refused-by-calibration"
REFUSED, EXPIRED, CANCELLED, FAILED = "refused", "expired", "cancelled", "failed"
STATES = (ACCEPTED, COMMITTED, DECLINED, REFUSED, EXPIRED, CANCELLED, FAILED)
"""The states that are stored; a document that is accepted may be being served."""

DOCUMENT_TABLES = """
CREATE TABLE IF NOT EXISTS document (
    seq INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE, id TEXT, requester TEXT, sha256 TEXT NOT NULL,
    received TEXT NOT NULL, deadline TEXT, state TEXT NOT NULL, code TEXT, message TEXT NOT NULL,
    changed TEXT NOT NULL, content BLOB)
"""
FIELDS = ("id", "requester", "sha256", "received", "deadline", "state", "code", "message", "changed")
"""Columns of the table that entries of the audit log tell of by name."""
_COLUMNS = f"seq, ticket, {', '.join(FIELDS)}"
_LONGEST = 500  # characters of a message: it can quote what came from outside


@dataclass(frozen=True)
class DocumentRow:
    """One document that was taken in.

    Attributes:
        seq: From 1 up, in the order of being taken in.
        ticket: Its name in the inbox.
        id: The document's own id; None when it could not be read.
        requester: Who it says asks; proven only when it was accepted by a policy.
        sha256: Digest (hexadecimal) of its bytes.
        received: When it came; UTC, ISO 8601, as all times here.
        deadline: Until when it must be served, or None.
        state: One of `STATES`.
        code: Why it was refused, in a word; None when it was not.
        message: The same in a sentence, or what came of it.
        changed: When it came to this state; for one that was committed, when that was decided.
    """

    seq: int
    ticket: str
    id: str | None
    requester: str | None
    sha256: str
    received: str
    deadline: str | None
    state: str
    code: str | None
    message: str
    changed: str


class DocumentLog:
    """The documents of one store.

    Args:
        umig: The graph whose file holds the table.
        audit: The log that tells of every change.
    """

    def __init__(self, umig: UMIG, audit: AuditLog) -> None:
        self.umig, self.audit = umig, audit

    # ------------------------------------------------------------------ writing
    def add(
        self,
        ticket: str,
        data: bytes,
        *,
        received: datetime,
        state: str,
        code: str | None = None,
        message: str = "",
        id: str | None = None,
        requester: str | None = None,
        deadline: datetime | None = None,
        keep: bool = False,
    ) -> DocumentRow:
        """Record a document.

        Args:
            ticket: Its name in the inbox.
            data: Its bytes.
            received: When it came.
            state: What was decided about it.
            code: See `DocumentRow`.
            message: See `DocumentRow`.
            id: See `DocumentRow`.
            requester: See `DocumentRow`.
            deadline: See `DocumentRow`.
            keep: Whether it has authority: it is kept, and its id counts as used from now on.
        """
        digest, times = sha256(data).hexdigest(), (time_text(received), time_text(deadline))
        changed = time_text(self.audit.clock())
        values = (id, requester, digest, *times, state, code, _short(message), changed)
        with self.audit.transaction():
            said = dict(zip(FIELDS, values, strict=True))
            self.audit.append("document", {"document": ticket, **said, "kept": keep})
            self._execute(
                f"INSERT INTO document (ticket, {', '.join(FIELDS)}, content) "
                f"VALUES (?, {', '.join('?' * len(FIELDS))}, ?)",
                *(ticket, *values, data if keep else None),
            )
        row = self.of_ticket(ticket)
        assert row is not None
        return row

    def change(
        self,
        row: DocumentRow,
        state: str,
        *,
        code: str | None = None,
        message: str = "",
        request: int | None = None,
    ) -> None:
        """Note what became of a document, and in which request.

        One that was committed is noted with the time of the decision, though this may be written later.
        """
        time = self._decided(request) if state == COMMITTED else None
        changed = time or time_text(self.audit.clock())
        said = {"state": state, "code": code, "message": _short(message), "changed": changed}
        entry = {"document": row.ticket, **said} | ({} if request is None else {"request": request})
        with self.audit.transaction():
            self.audit.append("document", entry)
            self._execute(
                "UPDATE document SET state = ?, code = ?, message = ?, changed = ? WHERE seq = ?",
                *(*said.values(), row.seq),
            )

    def _decided(self, request: int | None) -> str | None:
        """When a request was decided, as the audit log has it."""
        query = (
            "SELECT time FROM audit WHERE kind = 'decided' AND json_extract(body, '$.request.request') = ?"
        )
        found = self._execute(f"{query} ORDER BY seq LIMIT 1", request).fetchone()
        return time_text(datetime.fromisoformat(found[0])) if found else None

    # ------------------------------------------------------------------ reading
    def rows(self, state: str | None = None) -> list[DocumentRow]:
        """The documents in that state (None: any), in the order they were taken in."""
        return list(self._rows("? IS NULL OR state = ?", state, state))

    def row(self, seq: int) -> DocumentRow:
        """The document with that number."""
        return next(self._rows("seq = ?", seq))

    def of_ticket(self, ticket: str) -> DocumentRow | None:
        """The document that came under a ticket."""
        return next(self._rows("ticket = ?", ticket), None)

    def seen(self, id: str) -> bool:
        """Whether a document of that id was accepted before: what was refused uses up no id."""
        return next(self._rows("id = ? AND content IS NOT NULL", id), None) is not None

    def content(self, row: DocumentRow) -> bytes | None:
        """The bytes of a document that has authority; None for one that was refused."""
        (data,) = self._execute("SELECT content FROM document WHERE seq = ?", row.seq).fetchone()
        return None if data is None else bytes(data)

    def request(self, row: DocumentRow) -> tuple[int, str] | None:
        """Number and phase of the last request made for a document; None before one was."""
        query = "SELECT id, phase FROM request WHERE position = ? ORDER BY id DESC LIMIT 1"
        found = self._execute(query, position(row)).fetchone()
        return None if found is None else (int(found[0]), str(found[1]))

    def _rows(self, where: str, *values: Any) -> Iterator[DocumentRow]:
        # A store of an older version, opened read-only, lacks the table.
        if self._execute("SELECT 1 FROM sqlite_master WHERE name = 'document'").fetchall():
            query = f"SELECT {_COLUMNS} FROM document WHERE {where} ORDER BY seq"
            yield from (DocumentRow(*row) for row in self._execute(query, *values).fetchall())

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)


def position(row: DocumentRow) -> int:
    """Where the requests made for a document stand in `request_log`: below 0, one place for each document."""
    return -row.seq


def time_text(time: datetime | None) -> Any:
    """A time as it is kept: UTC, whole seconds, such as ``2026-11-22T02:00:00Z``."""
    return None if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(message: str) -> str:
    storable = message.encode(errors="replace").decode().replace("\0", "?")
    return storable if len(storable) <= _LONGEST else storable[: _LONGEST - 3] + "..."
