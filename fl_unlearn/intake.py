"""Taking in the request documents that wait: whoever holds the store decides about them, and records it.

What is decided about a document is one transaction with its entry in the audit log; its file is removed from
the inbox afterwards. After a crash in between, the file of a document that is recorded is just removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.document_log import ACCEPTED, CANCELLED, EXPIRED, REFUSED, DocumentRow
from fl_unlearn.inbox import received
from fl_unlearn.policy import Policy, Requester
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import REFUSAL_CODES, DocumentError, PolicyError, StoreError

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
    take_cancellations(store)
    store.inbox.sweep()
    return taken


def take_cancellations(store: RunStore) -> None:
    """Cancel accepted documents that are to be cancelled; those that wait are decided about by `take_in`.

    Raises:
        StoreError: If the store cannot be written.
    """
    waiting = set(store.inbox.waiting())
    for ticket in store.inbox.cancellations():
        if ticket not in waiting:
            _cancel(store, ticket)
            _remove(store, ticket)


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


def check_again(
    document: RequestDocument, policy: Policy | None, *, accepted: str, now: datetime
) -> Requester | None:
    """Check a document that was accepted, right before it is served: the policy may be another by now.

    Args:
        document: The document.
        policy: Who may ask for what.
        accepted: When it was accepted, as `DocumentRow.changed` has it. Its age is that of then: while it
            waited it has not become too old.
        now: The time; its deadline may have passed.

    Returns:
        Who asks, as the policy knows it; None without a policy.

    Raises:
        PolicyError: If it may not be served any more.
    """
    document.check_deadline(now)
    if policy is None:
        return None
    return policy.check(document, now=datetime.fromisoformat(accepted), seen=lambda _: False)


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
