"""Serving one forget request over a Grid: Fisher, merge, calibration, commit, broadcast, verification.

Nothing is changed, in the store, at the clients or in the current model, before the commit; an error or a
refusal before it leaves everything as it was. Every phase completed is noted in the store, so that a request
whose server died goes on after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fl_unlearn import request_log
from fl_unlearn.apply import stage
from fl_unlearn.budget import COST, REQUESTER, cost_of, over_budget
from fl_unlearn.calibration import Candidate
from fl_unlearn.calibration_data import settings_for
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.evidence import check_named
from fl_unlearn.flower import records
from fl_unlearn.flower.ask_data_scores import ask_data_scores
from fl_unlearn.flower.ask_scores import ask_scores
from fl_unlearn.flower.broadcast import broadcast, deliver_outstanding, identify
from fl_unlearn.flower.double_check import check_commit, contradictions
from fl_unlearn.flower.exchange import Exchange, unidentified
from fl_unlearn.flower.measuring import measure_both
from fl_unlearn.flower.names import recall
from fl_unlearn.flower.panel import Panel
from fl_unlearn.flower.progress import Progress, decision_of, digest_of, fail, released, take_up
from fl_unlearn.flower.recovery import refresh_snapshot
from fl_unlearn.flower.result import ForgetResult, describe
from fl_unlearn.flower.search import Search
from fl_unlearn.flower.targets import Targets
from fl_unlearn.privacy import Privacy, cost
from fl_unlearn.request_log import RequestRow
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, ForgetRequest, StoreError, UnlearnSettings, signature_of
from fl_unlearn.vote import SaidBy

log = logging.getLogger(__name__)


def forget(
    grid: Grid,
    request: ForgetRequest,
    store: RunStore,
    *,
    settings: UnlearnSettings | None = None,
    current: ArrayRecord | None = None,
    requester: str | None = None,
    budget: float | None = None,
) -> ForgetResult:
    """Serve one request; one that was interrupted goes on, when it is made again.

    Args:
        grid: Flower's Grid.
        request: What is to be forgotten.
        store: The run's store; its affected checkpoints are dampened.
        settings: How to serve it.
        current: The current global model; default the newest one in the store. It is not changed: the
            unlearned model is in the result.
        requester: Who asks; recorded with what is committed.
        budget: Most retained accuracy, 0 to 1, that this requester's requests may cost in all, those
            committed before included; None: no limit.

    Returns:
        What became of the request. A refusal is a result; only what makes a request senseless is an error.

    Raises:
        SettingsError: If the settings name a metric that there is not, or erase what is no class.
        RequestError: If a class, client or sample is unknown, nobody holds a class, or nothing would be
            retained.
        NotEnoughAnswersError: If too few clients answered a phase; nothing was changed.
        StoreError: If the store cannot serve it (foreign model, corrupt checkpoint, full disk); nothing was
            changed.
    """
    settings = settings or UnlearnSettings()
    row = take_up(store, request, settings)
    return Session(grid, row, store, settings, current, requester=requester, budget=budget).run()


class Session:
    """One request being served.

    Args:
        grid: Flower's Grid.
        row: The request, as `progress.take_up` gives it.
        store: The run's store.
        settings: How to serve it.
        current: The current global model; default the newest one in the store.
        requester: Who asks, where that is known.
        budget: The most that this requester's requests may cost in all; see `forget`.

    Attributes:
        result: What has become of the request so far.
        decided: Whether it was decided now, and not by a server that died since.

    Raises:
        StoreError: If the store cannot serve it.
    """

    def __init__(
        self,
        grid: Grid,
        row: RequestRow,
        store: RunStore,
        settings: UnlearnSettings,
        current: ArrayRecord | None,
        *,
        requester: str | None = None,
        budget: float | None = None,
    ) -> None:
        self.requester, self.budget = requester, budget
        settings = settings_for(row.request, settings)
        self.request, self.store, self.settings = row.request, store, settings
        self.decided, self._started = False, time.perf_counter()
        with _failing(store, row):
            refresh_snapshot(store)
            self.state = records.to_state(current) if current is not None else store.latest()[1].state
            store.check_model(signature_of(self.state))
            self.progress = Progress(store, row, settings, self.state)
        self.result = self.progress.result
        operations = [o.request for o in store.operations.all()]
        before = {c for o in operations if not o["clients"] for c in o["classes"]}
        ignored = sorted(before - set(self.request.classes))
        self.result.state, self.result.forgotten_before = self.state, tuple(ignored)
        self._earlier = replace(self.result)
        # A request that was decided before is among the operations: it is not one before itself.
        earlier = [o for o in operations if o.get("request") != row.id]
        targets = Targets.after(self.request, earlier)
        exchange = Exchange(grid, settings.timeout)
        self.panel = Panel(exchange, self.request, settings, store.examples(), ignored, targets)
        self.panel.remembered = recall(store)
        self.panel.released, self.panel.on_release = list(self.progress.released), self.progress.release

    def run(self) -> ForgetResult:
        """Serve it.

        Raises:
            UnlearnError: As `forget`; nothing was changed.
        """
        if self.progress.decision is None:
            with _failing(self.store, self.progress.row):
                try:
                    self.panel.wait_for_clients()
                    self._meet()
                    if self.request.kind != "classes":
                        check_named(self.request, self.store, self.panel.names.values())
                    self._decide()
                    if self.progress.decision is None:
                        self._note(request_log.REFUSED)
                finally:
                    self._count()
        if self.progress.decision is not None:
            self._tell_and_verify()
        log.info("%s", self.result.message)
        return self.result

    def _meet(self) -> None:
        """Give clients that are back what they missed; learn who is who where that is needed beforehand."""
        names = None
        if self.progress.resumed or self.panel.targets.personal:
            names = identify(self.panel.exchange, self.panel.nodes)
            self.panel.names.update({node: name for node, name in names.items() if name is not None})
        deliver_outstanding(self.panel.exchange, self.store, self.panel.nodes, names)

    def _decide(self) -> None:
        """All phases up to the commit, less those completed before."""
        search = Search(self.panel, self.store, self.state, self.progress, self.result, self._note)
        found = search.find()
        if found is None:
            return
        if self.requester is not None and self.budget is not None:
            why = over_budget(self.store, self.requester, self.budget, found.candidate)
            if why is not None:
                self.result.message = why
                return
        scored, ignored = self.progress.scored_update, self.panel.ignored
        check_commit(self.state, found.update, scored, self.settings, self.request, ignored)
        self.result.update = found.update
        self._commit(found.candidate, found.updates)

    def _commit(self, chosen: Candidate, updates: dict[str, DampeningUpdate]) -> None:
        r = self.result
        assert r.update is not None
        staged = stage(self.store, updates, r.update, executor=self.settings.executor)
        clients = {*self.store.clients().values(), *self.panel.clients()}
        try:
            staged.commit(self._record(chosen), sorted(clients))
        except BaseException:  # Ctrl-C, say, while what is decided is put in place
            self.decided = decision_of(self.store, self.progress.row) is not None
            raise
        self.decided = r.committed = True
        r.applied = tuple(f.name for f in staged.files)
        r.state = apply_update(self.state, r.update)
        r.message = describe(r, chosen, self.progress.scored)
        decided = (o for o in self.store.operations.all() if o.digest == staged.digest)
        self.progress.decision = next(decided)
        try:
            self._note(request_log.COMMITTED)
            refresh_snapshot(self.store)
        except Exception:
            log.exception("the update is committed; what the server keeps to go on gets it at the next start")

    def _note(self, phase: str) -> None:
        """The one place where it is noted that a phase is over."""
        self._count()
        self.progress.note(phase)

    def _count(self) -> None:
        """What the request has cost so far, before its server died included."""
        r, x, earlier = self.result, self.panel.exchange, self._earlier
        r.asked = tuple(dict.fromkeys((*earlier.asked, *(self.panel.label(n) for n in self.panel.nodes))))
        r.failed = {**earlier.failed, **self.panel.failed}
        r.silent = tuple(sorted({*earlier.silent, *self.panel.silent}))
        if self.settings.privacy != Privacy():
            r.privacy = cost(self.panel.released, self._released_before(), self.settings.privacy)
        r.wall_seconds = earlier.wall_seconds + time.perf_counter() - self._started
        r.client_seconds = earlier.client_seconds + x.client_seconds
        r.bytes_up, r.bytes_down = earlier.bytes_up + x.bytes_up, earlier.bytes_down + x.bytes_down

    def _released_before(self) -> list[float]:
        rows = self.store.runs.requests.all()
        return [z for row in rows if row.id != self.progress.row.id for z in released(row)]

    def _record(self, chosen: Candidate) -> dict[str, Any]:
        asked = {} if self.requester is None else {REQUESTER: self.requester}
        return {
            **self.request.to_json(),
            **asked,
            COST: cost_of(chosen),
            "request": self.progress.row.id,
            "threshold": chosen.threshold,
            "dampening": chosen.dampening,
            "settings": self.settings.to_json(),
            "roots": list(self.result.roots),
            "holders": sorted(self.result.holders),
        }

    # ------------------------------------------------------------------ after the commit
    def _tell_and_verify(self) -> None:
        """Nothing that goes wrong here undoes the commit: what is missing is recorded and made up for."""
        r, row = self.result, self.progress.row
        try:
            if not r.committed:
                self._recall_commit()
            if self.progress.behind and r.update is not None:
                r.state = apply_update(self.state, r.update)
            if not self.decided:
                self.panel.wait_for_clients()
                self._meet()
            self._tell()
            self._note(request_log.TOLD)
            r.after = self._verified()
        except Exception as e:
            log.exception("the update is committed, but telling the clients or verifying it failed")
            r.message += f". Telling the clients or verifying it failed: {e}"
        if r.update is not None:
            before = self.state if self.decided or self.progress.behind else None
            r.measured = measure_both(self.panel, r.state, before)
        r.receipts = self.store.runs.requests.receipts(row.id)
        r.outstanding = tuple(sorted(self.store.operations.outstanding()))
        try:
            self._note(request_log.DONE)
        except StoreError:
            log.exception("request %d is served, but that could not be noted", row.id)

    def _verified(self) -> tuple[ClassScores, ClassScores]:
        """Scores of the model afterwards, as `ForgetResult` has them."""
        if self.request.kind != "classes":
            data = ask_data_scores(self.panel, self.result.state, None)
            after = data.forget[0], data.held[0]
            self._contradict(after, data.clients, data.said(0), "held-out")
            return after
        scored = ask_scores(self.panel, [self.result.state], None)
        after = scored.rows[0][0].forget, scored.rows[0][0].retain
        self._contradict(after, scored.clients, scored.votes.said(0) if scored.votes else {}, "retained")
        return after

    def _contradict(
        self, after: tuple[ClassScores, ClassScores], clients: int, now_said: SaidBy, kept: str
    ) -> None:
        r, p = self.result, self.progress
        if p.expected is not None and digest_of(r.state) != p.expected:
            return  # training went on before the server was back: it is another model
        chosen = p.candidate() if clients == p.scored[0] else None
        r.contradictions = contradictions(chosen, p.promised, after, now_said, self.settings, kept)
        if r.contradictions:
            what = "; ".join(r.contradictions[:3])
            r.message += f". The verification contradicts what this was decided by: {what}"
            log.warning("request %d: %s", p.row.id, "; ".join(r.contradictions))

    def _recall_commit(self) -> None:
        """What the server that decided died too early to note."""
        r, decision, chosen = self.result, self.progress.decision, self.progress.candidate()
        assert decision is not None
        assert chosen is not None
        r.committed, r.applied = True, self.store.runs.requests.applied(decision.digest)
        r.update = self.store.update(decision.client_update)
        r.message = describe(r, chosen, self.progress.scored)

    def _tell(self) -> None:
        """Send the update to those that have not confirmed it, and to those that it is not known of."""
        decision = self.progress.decision
        assert decision is not None
        waiting = [c for c, missed in self.store.operations.outstanding().items() if decision in missed]
        nodes = {node: self.panel.label(node) for node in self.panel.nodes}
        nodes = {n: c for n, c in nodes.items() if c in waiting or c == unidentified(n)}
        if nodes:
            update = self.store.update(decision.client_update)
            broadcast(self.panel.exchange, self.store, decision.digest, update, nodes, self.progress.row.id)


@contextmanager
def _failing(store: RunStore, row: RequestRow) -> Iterator[None]:
    """An error in the block ends the request; one that was decided goes on, however."""
    try:
        yield
    except Exception as e:
        with suppress(StoreError):
            if decision_of(store, row) is None:
                fail(store, row, f"{type(e).__name__}: {e}")
        raise
