"""How far request documents have come, waiting ones included: for those who asked, and for operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from fl_unlearn import document_log
from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.document_log import ACCEPTED, COMMITTED, DECLINED, EXPIRED, FAILED, DocumentRow, time_text
from fl_unlearn.inbox import received
from fl_unlearn.intake import refusal_state
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.request_log import UNFINISHED, RequestRow
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import DocumentError, RequestError, StoreError

WAITING, SERVING = "waiting", "serving"
REFUSALS = (document_log.REFUSED, EXPIRED)
STATES = (WAITING, SERVING, *document_log.STATES)
SHORTEST_PREFIX = 6


@dataclass(frozen=True)
class DocumentStatus:
    """One document and what has become of it; times are UTC, ISO 8601.

    Attributes:
        id: The document's own id; None when it could not be read.
        ticket: Its name in this store: another one each time a document comes.
        requester: Who it says asks; proven only when it was accepted by a policy.
        state: "waiting" (not looked at yet), "serving", or one of `document_log.STATES`.
        phase: The phase that serving it has completed last; None unless it is being served.
        code: Why it was refused, in a word; None when it was not.
        message: The same in a sentence, or what came of it.
        request: Number of the request that was made for it, as in the audit log; None before one was.
        target: Classes, clients and samples to forget; None when it was not accepted and does not wait.
        federation: For which federation it is meant, or None.
        scope: How deep, or None.
        reason: Free text.
        created: When it was written, by its own word.
        received: When it came.
        changed: When it came to this state; for one that was committed, when that was decided.
        deadline: Until when it must be served, or None.
        deadline_met: Whether it was; None without a deadline, while it is still open, and for what was
            refused or cancelled.
        sha256: Digest (hexadecimal) of its bytes.
        key: Fingerprint of the key that it says it is signed with.
    """

    id: str | None
    ticket: str
    requester: str | None
    state: str
    phase: str | None
    code: str | None
    message: str
    request: int | None
    target: dict[str, Any] | None
    federation: str | None
    scope: str | None
    reason: str | None
    created: str | None
    received: str
    changed: str | None
    deadline: str | None
    deadline_met: bool | None
    sha256: str
    key: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def statuses(store: RunStore) -> list[DocumentStatus]:
    """Every document, in the order they came.

    Args:
        store: The store; may be read-only, while a run writes.
    """
    waiting = list(_waiting(store))  # before the table: what is taken in meanwhile must not be missed
    taken = [of_row(store, row) for row in store.documents.rows()]
    known = {status.ticket for status in taken}
    return sorted([*taken, *(w for w in waiting if w.ticket not in known)], key=lambda s: s.ticket)


def find(store: RunStore, name: str) -> DocumentStatus:
    """The document with that id or ticket, or the only one whose id or ticket begins so.

    Of several that came with one id (replays, forgeries), it is the one that has authority, or the last.

    Raises:
        RequestError: If there is none, or several.
    """
    every = statuses(store)
    exact = [s for s in every if name in (s.id, s.ticket)]
    found = exact or [
        s
        for s in every
        if len(name) >= SHORTEST_PREFIX and (s.ticket.startswith(name) or (s.id or "").startswith(name))
    ]
    if len({s.id or s.ticket for s in found}) != 1:
        raise RequestError(
            f"{len(found) or 'no'} documents in {store.folder} are called {name!r}; give an id or a ticket "
            f"as `fl-unlearn request list` shows them, or at least {SHORTEST_PREFIX} characters of one"
        )
    kept = [s for s in found if s.target is not None]
    return kept[0] if kept else found[-1]


def of_row(store: RunStore, row: DocumentRow) -> DocumentStatus:
    """The status of a document that was taken in."""
    made = store.documents.request(row)
    state, phase = row.state, None
    if made and row.state == ACCEPTED and made[1] in UNFINISHED:
        state, phase = SERVING, made[1]
    own = {name: value for name, value in vars(row).items() if name not in ("seq", "state")}
    return DocumentStatus(
        **{**_content(store.documents.content(row)), **own},
        state=state,
        phase=phase,
        request=made[0] if made else None,
        deadline_met=_met(state, row.deadline, row.changed),
    )


def of_request(store: RunStore, row: RequestRow) -> DocumentStatus | None:
    """The status of the document that a request was made for; None when there is none."""
    if row.position is None or row.position >= 0:
        return None
    return of_row(store, store.documents.row(-row.position))


def _waiting(store: RunStore) -> Iterator[DocumentStatus]:
    cancelled = set(store.inbox.cancellations())
    for ticket in store.inbox.waiting():
        try:
            data = store.inbox.read(ticket, MAX_BYTES) or b""
        except StoreError:  # whoever takes it in says what is wrong
            data = b""
        refused = store.inbox.refused(ticket)
        code, message = refused or (None, "cancellation was asked for" if ticket in cancelled else "")
        state = WAITING if code is None else refusal_state(code)
        content = _content(data)
        yield DocumentStatus(
            **content,
            ticket=ticket,
            state=state,
            phase=None,
            code=code,
            message=message,
            request=None,
            received=time_text(received(ticket)),
            changed=None,
            deadline_met=_met(state, content["deadline"], None),
            sha256=sha256(data).hexdigest(),
        )


def _content(data: bytes | None) -> dict[str, Any]:
    """What a document itself says; nothing when it cannot be read."""
    names = ("id", "requester", "federation", "target", "scope", "reason", "created", "deadline", "key")
    try:
        document = RequestDocument.from_bytes(data or b"")
    except DocumentError:
        return dict.fromkeys(names)
    plain = document.to_json()
    key = document.signature.key if document.signature else None
    return {name: plain.get(name) for name in names} | {"key": key}


def _met(state: str, deadline: str | None, changed: str | None) -> bool | None:
    """Whether a deadline was met; texts of one format compare as the times do."""
    if deadline is None:
        return None
    if state == COMMITTED:
        return changed is not None and changed <= deadline
    if state in (EXPIRED, FAILED, DECLINED):
        return False
    passed = time_text(datetime.now(UTC)) > deadline
    return False if state in (WAITING, ACCEPTED, SERVING) and passed else None
