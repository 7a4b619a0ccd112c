"""Where documents are handed in and withdrawn by whoever is not the run: the command line and the service.

A run that holds the store decides about them when it comes to its next round. When none does, the store is
opened for a moment and decided about here, with a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_unlearn.document_log import ACCEPTED
from fl_unlearn.document_status import REFUSALS, DocumentStatus, find, statuses
from fl_unlearn.intake import check, take_cancellations, take_in
from fl_unlearn.lock import StoreBusyError
from fl_unlearn.policy import Policy
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import DocumentError, PolicyError, RequestError, StoreError

_NO_POLICY = "it waits for the next run on this store, or for whoever takes it in with a policy"
_WAIT = 0.5  # seconds: another command may be doing the same
_BUSY = "a run holds the store and takes it in when it comes to its next round, or to its end"


@dataclass(frozen=True)
class Desk:
    """One store, as others than its run come to it.

    Attributes:
        folder: The store's folder.
        policy: Who may ask for what; None: nothing is decided here.
        signing_key: Of the audit log, as `RunStore` takes it.
        audit_head: As `RunStore` takes it.
    """

    folder: Path
    policy: Policy | None = None
    signing_key: Path | None = None
    audit_head: Path | None = None

    def hand_in(self, data: bytes) -> tuple[DocumentStatus, str | None]:
        """Put a document into the store's inbox, and decide about it if no run holds the store.

        What the policy refuses is refused even if the run has another policy, or none.

        Args:
            data: The document's bytes, as they came.

        Returns:
            What has become of it, and why it waits (None: it does not).

        Raises:
            InboxFullError: If too many documents wait.
            StoreError: If there is no store, or it cannot be written to.
        """
        with RunStore(self.folder, read_only=True) as store:
            ticket = store.inbox.add(data, refused=self._refusal(store, data))
        why = self._take_in(waiting=True)
        with RunStore(self.folder, read_only=True) as store:
            status = next(s for s in statuses(store) if s.ticket == ticket)
            undecided = store.documents.of_ticket(ticket) is None and status.state not in REFUSALS
            return status, why if undecided else None

    def trouble(self) -> str | None:
        """Why nothing can be decided here even while no run holds the store; None: something can."""
        try:
            with RunStore(self.folder, signing_key=self.signing_key, audit_head=self.audit_head, wait=_WAIT):
                return None
        except StoreBusyError:
            return None
        except StoreError as e:
            return str(e)

    def withdraw(self, name: str) -> tuple[DocumentStatus, str | None]:
        """Cancel a document; a run that holds the store does it, unless it comes to serve it first.

        Args:
            name: Its id or ticket, or the start of one.

        Returns:
            What has become of it, and why it is not cancelled yet (None: it is).

        Raises:
            RequestError: If there is no such document, or it is too late.
            StoreError: If there is no store, or it cannot be written to.
        """
        with RunStore(self.folder, read_only=True) as store:
            ticket = find(store, name).ticket
            row = store.documents.of_ticket(ticket)
            if row is not None and (row.state != ACCEPTED or store.documents.request(row) is not None):
                state = "being served" if row.state == ACCEPTED else row.state
                raise RequestError(f"document {row.id or ticket} cannot be cancelled any more: it is {state}")
            store.inbox.cancel(ticket)
        why = self._take_in(waiting=row is None)
        with RunStore(self.folder, read_only=True) as store:
            done = ticket not in store.inbox.cancellations()
            return find(store, ticket), None if done else why

    def _refusal(self, store: RunStore, data: bytes) -> tuple[str, str] | None:
        if self.policy is None:
            return None
        try:
            document = RequestDocument.from_bytes(data)
            check(document, self.policy, now=datetime.now(UTC), seen=store.documents.seen)
        except DocumentError as e:
            return "malformed", str(e)
        except PolicyError as e:
            return e.code, str(e)
        return None

    def _take_in(self, *, waiting: bool) -> str | None:
        """Decide now about what is there; why that was not possible, or None."""
        if waiting and self.policy is None:
            return _NO_POLICY
        try:
            with RunStore(
                self.folder, signing_key=self.signing_key, audit_head=self.audit_head, wait=_WAIT
            ) as store:
                if self.policy is None:
                    take_cancellations(store)
                else:
                    take_in(store, self.policy)
        except StoreBusyError:
            return _BUSY
        except StoreError as e:
            return f"the store cannot be written to now: {e}"
        return None
