"""What is to be served now: requests submitted by the program, and documents that were put into the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_unlearn.document_log import ACCEPTED, COMMITTED, DECLINED, FAILED, DocumentRow, position
from fl_unlearn.document_status import of_row
from fl_unlearn.flower.progress import decision_of, fail, take_up
from fl_unlearn.flower.queue import Queue
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.intake import check_again, refusal_state, take_in
from fl_unlearn.policy import Policy, Requester
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.request_log import DONE, REFUSED, UNFINISHED, RequestRow
from fl_unlearn.run_log import Run
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, PolicyError, StoreError, UnlearnSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Due:
    """One request to be served now.

    Attributes:
        request: What is to be forgotten.
        settings: How.
        position: Its place in the request log.
        after_round: The round after which it was due; None: the last, or whenever it came.
        document: The document that asks for it; None when the program does.
        requester: Who signed it, as the policy knows it; its budget counts.
    """

    request: ForgetRequest
    settings: UnlearnSettings
    position: int
    after_round: int | None = None
    document: DocumentRow | None = None
    requester: Requester | None = None

    def take_up(self, store: RunStore) -> RequestRow:
        """`progress.take_up`."""
        ticket = self.document.ticket if self.document else None
        places = {"position": self.position, "after_round": self.after_round}
        return take_up(store, self.request, self.settings, **places, document=ticket)


class Intake:
    """The requests of one strategy's runs.

    Args:
        store: The run's store.
        policy: Who may ask for what by document, or the file that says so; None: whoever can write to the
            store's folder may.

    Raises:
        PolicyFileError: If the file cannot be used.
    """

    def __init__(self, store: RunStore, policy: Policy | str | Path | None = None) -> None:
        self.store, self.queue = store, Queue(store)
        self.policy = policy if policy is None or isinstance(policy, Policy) else Policy.read(policy)

    def due(self, rounds_done: int | None, settings: UnlearnSettings) -> Iterator[Due]:
        """What is to be served after so many rounds (None: after the last), submitted requests first.

        Documents that came while an earlier one was being served are among it.

        Args:
            rounds_done: How many rounds of the run are done.
            settings: The run's settings.
        """
        for queued in self.queue.due(rounds_done):
            yield Due(queued.request, settings, queued.position, queued.after_round)
        tried: set[int] = set()
        while True:
            self._take_in()
            waiting = [row for row in self.store.documents.rows(ACCEPTED) if row.seq not in tried]
            if not waiting:
                return
            tried.add(waiting[0].seq)
            try:
                due = self._begin(waiting[0], settings)
            except Exception as e:  # whatever it is, the training must go on
                log.exception("document %s cannot be served", waiting[0].id)
                self._fail(waiting[0], f"{type(e).__name__}: {e}")
                continue
            if due is not None:
                yield due

    def settle(self, due: Due, result: ForgetResult, row: RequestRow | None) -> None:
        """Note what became of a document that was due; one that is decided, and not over, goes on later.

        Args:
            due: What was due.
            result: What became of it.
            row: The request that was made for it; None when it could not be made.
        """
        document = due.document
        if document is None:
            return
        try:
            phase = FAILED if row is None else self.store.runs.requests.row(row.id).phase
            if row is not None and phase in UNFINISHED and decision_of(self.store, row) is None:
                fail(self.store, row, result.message)
                phase = FAILED
            if phase not in UNFINISHED:
                self._close(document, row.id if row else None, phase, result.message)
            result.document = of_row(self.store, self.store.documents.row(document.seq))
        except StoreError:
            log.exception("what became of document %s could not be noted; the next start does", document.id)

    def recalled(self, run: Run) -> list[RequestRow]:
        """Requests that an interrupted run had served before, in that order (`queue.Queue.settle`)."""
        for document in self.store.documents.rows(ACCEPTED):
            self._close_over(document)
        return self.queue.settle(run)

    def _take_in(self) -> None:
        try:
            take_in(self.store, self.policy)
        except Exception:
            log.exception("the documents that wait in %s were not all taken in", self.store.inbox.folder)

    def _begin(self, document: DocumentRow, settings: UnlearnSettings) -> Due | None:
        """A document that is to be served now; None when that was done before, or may not be any more."""
        if self._close_over(document):
            return None
        made = self.store.documents.request(document)
        row = self.store.runs.requests.row(made[0]) if made else None
        asked = RequestDocument.from_bytes(self.store.documents.content(document) or b"")
        requester = None
        if row is None or decision_of(self.store, row) is None:
            try:
                requester = check_again(
                    asked, self.policy, accepted=document.changed, now=self.store.audit.clock()
                )
            except PolicyError as e:
                if row is not None and row.phase in UNFINISHED:
                    fail(self.store, row, f"{e.code}: {e}")
                self.store.documents.change(document, refusal_state(e.code), code=e.code, message=str(e))
                return None
        how = asked.settings(settings)
        return Due(asked.request, how, position(document), document=document, requester=requester)

    def _close_over(self, document: DocumentRow) -> bool:
        """Whether a document was served before; if so, that is noted, which the server that died did not."""
        made = self.store.documents.request(document)
        if made is None or made[1] not in (DONE, REFUSED):
            return False
        row = self.store.runs.requests.row(made[0])
        self._close(document, row.id, row.phase, str(row.facts.get("message", "")))
        return True

    def _fail(self, document: DocumentRow, message: str) -> None:
        try:
            self.store.documents.change(document, FAILED, code="failed", message=message)
        except StoreError:
            log.exception("that could not be noted, so document %s is tried again", document.id)

    def _close(self, document: DocumentRow, request: int | None, phase: str, message: str) -> None:
        state = {DONE: COMMITTED, REFUSED: DECLINED}.get(phase, FAILED)
        code = {COMMITTED: None, DECLINED: "calibration"}.get(state, "failed")
        self.store.documents.change(document, state, code=code, message=message, request=request)
