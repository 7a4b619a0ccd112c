"""Requests that were submitted and wait for their round, and those that a server which died had served."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fl_unlearn.calibration_data import named
from fl_unlearn.request_log import RequestRow
from fl_unlearn.run_log import Run
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queued:
    """One request: the round after which it is due (None: the last), and how many were submitted before."""

    request: ForgetRequest
    after_round: int | None
    position: int


class Queue:
    """The requests submitted to one strategy.

    Args:
        store: The run's store.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._waiting: list[Queued] = []
        self._served: list[RequestRow] = []
        self._submitted = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, request: ForgetRequest, after_round: int | None) -> None:
        """Add a request.

        Raises:
            RequestError: If ``after_round`` is below 0.
        """
        if after_round is not None and after_round < 0:
            raise RequestError(f"after_round counts rounds from 0 up, got {after_round}")
        self._waiting.append(Queued(request, after_round, self._submitted))
        self._submitted += 1

    def due(self, rounds_done: int | None) -> list[Queued]:
        """Take out what is due after so many rounds; None: after the last."""
        due = [q for q in self._waiting if rounds_done is None or _is_due(q, rounds_done)]
        self._waiting = [q for q in self._waiting if q not in due]
        return due

    def settle(self, run: Run) -> list[RequestRow]:
        """Take out what an interrupted run had served before, and return it in the order it was served."""
        served, requests = [], self.store.runs.requests
        for row in requests.served(run.id):
            queued = self._find(row)
            if queued is not None:
                self._waiting.remove(queued)
                served.append(row)
            elif of_document(row):
                served.append(row)
            elif run.finished:  # what was asked for after `start`, the same program asks for again
                self._served.append(row)
        for row in requests.unfinished(run.id):
            if self._find(row) is None and not of_document(row):  # documents go on by themselves
                log.warning(
                    "the request to forget %s was interrupted after the phase %r: make it again, and it "
                    "goes on, or give it up with store.runs.requests.give_up(%d)",
                    named(row.request),
                    row.phase,
                    row.id,
                )
        return served

    def served(self, request: ForgetRequest) -> RequestRow | None:
        """The same request, if it was served directly before the server died; it counts once."""
        for row in self._served:
            if row.request == request:
                self._served.remove(row)
                return row
        return None

    def _find(self, row: RequestRow) -> Queued | None:
        same = (q for q in self._waiting if (q.position, q.request) == (row.position, row.request))
        return next(same, None)


def _is_due(queued: Queued, rounds_done: int) -> bool:
    return queued.after_round is not None and queued.after_round <= rounds_done


def of_document(row: RequestRow) -> bool:
    """Whether a request was made for a document."""
    return row.position is not None and row.position < 0
