"""Taking in the request documents that wait: whoever holds the store decides about them, and records it.

What is decided about a document is one transaction with its entry in the audit log; its file is removed from
the inbox afterwards. After a crash in between, the file of a document that is recorded is just removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.document_log import ACCEPTED, CANCELLED, EXPIRED, REFUSED, DocumentRow
from fl_unlearn.inbox import received
from fl_unlearn.lock import StoreBusyError
from fl_unlearn.policy import Policy
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import REFUSAL_CODES, DocumentError, PolicyError, RequestError, StoreError

log = logging.getLogger(__name__)


def take_in(store: RunStore, policy: Policy | None = None) -> list[DocumentRow]:
    """Decide about every document that waits, in the order of arrival, and about every cancellation.

    Refused are documents that are malformed, were accepted before, are past their deadline or, with a policy,
    not by whom they say or not allowed. Without a policy, whoever can write to the store's folder may ask.

    Args:
        store: The store, open for writing.
        policy: Who may ask for what.

    Returns:
        What was taken in.

    Raises:
        StoreError: If the store cannot be written; what was not recorded goes on waiting.
    """
    taken = []
    for ticket in store.inbox.waiting():
        if store.documents.of_ticket(ticket) is None and (row := _take(store, policy, ticket)) is not None:
            log.info("document %s of %r: %s %s", row.id, row.requester, row.state, row.message)
            taken.append(row)
        _remove(store, ticket)
    for ticket in store.inbox.cancellations():
        _cancel(store, ticket)
        _remove(store, ticket)
    store.inbox.sweep()
    return taken


def take_in_now(
    folder: Path,
    policy: Policy,
    *,
    signing_key: str | Path | None = None,
    audit_head: str | Path | None = None,
) -> str | None:
    """`take_in`, if no run holds the store.

    Args:
        folder: The store's folder.
        policy: Who may ask for what.
        signing_key: As `RunStore` takes it.
        audit_head: As `RunStore` takes it.

    Returns:
        Why the documents go on waiting; None when they were taken in.
    """
    try:
        with RunStore(folder, signing_key=signing_key, audit_head=audit_head) as store:
            take_in(store, policy)
    except StoreBusyError:
        return "a run holds the store and takes it in when it comes to its next round, or to its end"
    except StoreError as e:
        return f"the store cannot be written now: {e}"
    return None


def check(
    document: RequestDocument, policy: Policy | None, *, now: datetime, seen: Callable[[str], bool]
) -> None:
    """Check whether a document may be served.

    Raises:
        PolicyError: If not; its ``code`` says why.
    """
    if policy is not None:
        policy.check(document, now=now, seen=seen)
        return
    if seen(document.id):
        raise PolicyError("replayed", f"document {document.id} was accepted before; a document counts once")
    document.check_deadline(now)


def check_again(document: RequestDocument, policy: Policy | None, *, accepted: str, now: datetime) -> None:
    """Check a document that was accepted, right before it is served: the policy may be another by now.

    Args:
        document: The document.
        policy: Who may ask for what.
        accepted: When it was accepted, as `DocumentRow.changed` has it. Its age is that of then: while it
            waited it has not become too old.
        now: The time; its deadline may have passed.

    Raises:
        PolicyError: If it may not be served any more.
    """
    document.check_deadline(now)
    if policy is not None:
        policy.check(document, now=datetime.fromisoformat(accepted), seen=lambda _: False)


def refusal_state(code: str) -> str:
    """The state of a document that is refused with this code."""
    return EXPIRED if code == "expired" else REFUSED


def _take(store: RunStore, policy: Policy | None, ticket: str) -> DocumentRow | None:
    """Decide about one document, and record it; None when it is not there any more."""
    came = received(ticket)
    try:
        data = store.inbox.read(ticket, MAX_BYTES)
    except StoreError as e:
        return store.documents.add(
            ticket, b"", received=came, state=REFUSED, code="malformed", message=str(e)
        )
    if data is None:
        return None
    try:
        document = RequestDocument.from_bytes(data)
    except DocumentError as e:
        return store.documents.add(
            ticket, data, received=came, state=REFUSED, code="malformed", message=str(e)
        )
    state, code, message = _judge(store, policy, ticket, document)
    return store.documents.add(
        ticket,
        data,
        received=came,
        state=state,
        code=code,
        message=message,
        id=document.id,
        requester=document.requester,
        deadline=document.deadline,
        keep=state in (ACCEPTED, CANCELLED),
    )


def _judge(
    store: RunStore, policy: Policy | None, ticket: str, document: RequestDocument
) -> tuple[str, str | None, str]:
    """State, code and message for a document that is well formed."""
    if (found := store.inbox.refused(ticket)) is not None:
        code = found[0] if found[0] in REFUSAL_CODES else "not-allowed"
        return refusal_state(code), code, found[1]
    try:
        check(document, policy, now=store.audit.clock(), seen=store.documents.seen)
    except PolicyError as e:
        return refusal_state(e.code), e.code, str(e)
    if ticket in store.inbox.cancellations():  # only now: what has no authority must not use up an id
        return CANCELLED, None, "cancelled before it was taken in"
    return ACCEPTED, None, "" if policy is not None else "no policy: nobody checked who asks"


def _cancel(store: RunStore, ticket: str) -> None:
    row = store.documents.of_ticket(ticket)
    if row is None or row.state == CANCELLED:
        return
    if row.state == ACCEPTED and store.documents.request(row) is None:
        store.documents.change(row, CANCELLED, message="cancelled before it was served")
    else:
        log.warning("document %s cannot be cancelled any more: it is %s", row.id, row.state)


def _remove(store: RunStore, ticket: str) -> None:
    try:
        store.inbox.remove(ticket)
    except StoreError as e:  # it is recorded, so it is not taken in again
        log.warning("what was taken in stays in the inbox: %s", e)


def cancel(store: RunStore, ticket: str) -> None:
    """Ask that a document be cancelled; whoever holds the store does it, unless it is being served by then.

    Args:
        store: The store; may be read-only.
        ticket: Which.

    Raises:
        RequestError: If there is no such document, or it is too late.
        StoreError: If that cannot be written down.
    """
    row = store.documents.of_ticket(ticket)
    if row is None and ticket not in store.inbox.waiting():
        raise RequestError(f"there is no document {ticket!r} in {store.folder}")
    if row is not None and (row.state != ACCEPTED or store.documents.request(row) is not None):
        state = "being served" if row.state == ACCEPTED else row.state
        raise RequestError(f"document {row.id or ticket} cannot be cancelled any more: it is {state}")
    store.inbox.cancel(ticket)
