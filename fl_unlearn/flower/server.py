"""`UnlearningStrategy`: one wrapper that lets any Flower strategy forget.

While nothing is forgotten, the wrapped strategy's results are bit for bit those of the bare one: every call
is delegated, and what is recorded is copied before the inner strategy sees (and perhaps empties) it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_unlearn.calibration_data import named, settings_for
from fl_unlearn.flower import records
from fl_unlearn.flower.broadcast import deliver_outstanding
from fl_unlearn.flower.exchange import Exchange, match, natural
from fl_unlearn.flower.forgotten import tell_forgotten
from fl_unlearn.flower.intake import Intake
from fl_unlearn.flower.names import Names
from fl_unlearn.flower.progress import decision_of, take_up
from fl_unlearn.flower.recorder import Recorder
from fl_unlearn.flower.recovery import Loop, Recovery, renumber
from fl_unlearn.flower.result import ForgetResult, from_facts
from fl_unlearn.flower.server_state import dampen_arrays, dampen_memory
from fl_unlearn.flower.session import Session
from fl_unlearn.metrics import find
from fl_unlearn.policy import Policy, Requester
from fl_unlearn.request_log import RequestRow
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings

log = logging.getLogger(__name__)

QUICK = 120.0
"""Seconds, at most, to wait for answers that need no computing: a busy machine starts a process for each."""

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class UnlearningStrategy(Strategy):
    """Wraps a strategy: records its lineage while it trains, and serves forget requests.

    Wrap outermost: around a differential-privacy wrapper, not inside it. A program that died goes on when
    it is started again on the same store: see `start`.

    Args:
        strategy: Any ``flwr.serverapp.strategy.Strategy``.
        store: Folder of the run's store (made when absent), or a store that is open already.
        settings: How requests are served.
        keep: Which models are kept as checkpoints; only with a folder as ``store``.
        deterministic: Hand replies to the strategy in the order of client names instead of their arrival,
            so that floating-point sums, and with them the whole run, repeat exactly.
        on_request: Called with the store right before a queued request is served: the place to measure
            the stored models as they were.
        policy: Who may ask for what by document (`policy.Policy`), or the file that says so; documents that
            wait in the store are served between rounds. None: whoever can write to its folder may ask.

    Attributes:
        store: The run's store.
        results: What became of the requests served so far, in order.

    Raises:
        SettingsError: If the settings name a metric that there is not, or the policy file cannot be used.
        StoreError: If the store cannot be opened.
    """

    inner: type = Strategy

    def __init__(
        self,
        strategy: Strategy,
        *,
        store: RunStore | str | Path,
        settings: UnlearnSettings | None = None,
        keep: KeepPolicy | None = None,
        deterministic: bool = False,
        on_request: Callable[[RunStore], None] | None = None,
        policy: Policy | str | Path | None = None,
    ) -> None:
        if not isinstance(strategy, self.inner):
            raise UnlearnError(
                f"UnlearningStrategy wraps a flwr.serverapp.strategy.Strategy, got {type(strategy).__name__}"
                "; for a legacy project (flwr.server.strategy) use fl_unlearn.flower.legacy.remember"
            )
        self.strategy, self.settings = strategy, settings or UnlearnSettings()
        find(self.settings.measures)
        # A command that takes in documents may hold the store for a moment.
        self.store = store if isinstance(store, RunStore) else RunStore(store, keep=keep, wait=5.0)
        self.deterministic, self.on_request = deterministic, on_request
        self.results: list[ForgetResult] = []
        self._recovery = Recovery(self.store, strategy)
        key = getattr(strategy, "weighted_by_key", "num-examples")
        self._recorder = Recorder(self.store, self._recovery, key)
        self._clients = Names(self.store)
        self._sent: list[Message] = []
        self._intake = Intake(self.store, policy)
        self._done = 0  # rounds that were done before the server died
        self._inner_hooks: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """The inner strategy's own attributes, so that code which knows it goes on working."""
        if name == "strategy":
            raise AttributeError(name)
        return getattr(self.strategy, name)

    # ------------------------------------------------------------------ requests
    def submit(self, request: ForgetRequest, *, after_round: int | None = None) -> None:
        """Queue a request.

        Args:
            request: What is to be forgotten.
            after_round: Serve it when this round of the run is over (0: before the first); None: when
                training has ended.

        Raises:
            RequestError: If ``after_round`` is below 0.
            SettingsError: If the settings do not fit the kind of request.
        """
        settings_for(request, self.settings)
        self._intake.queue.submit(request, after_round)

    def forget(self, grid: Grid, request: ForgetRequest, arrays: ArrayRecord | None = None) -> ForgetResult:
        """Serve a request now; one that was interrupted goes on after its last completed phase.

        Args:
            grid: Flower's Grid.
            request: What is to be forgotten.
            arrays: The current global model. **Its values are replaced in place** when the update is
                committed, as is what the inner strategy remembers. Default: the model of the last round,
                or before any round the newest one in the store.

        Returns:
            What became of it.

        Raises:
            UnlearnError: As `session.forget`; nothing was changed.
        """
        if row := self._intake.queue.served(request):
            return self._recall(row)
        return self._forget(grid, take_up(self.store, request, self.settings), arrays, self.settings)

    def _forget(
        self,
        grid: Grid,
        row: RequestRow,
        arrays: ArrayRecord | None,
        settings: UnlearnSettings,
        asks: Requester | None = None,
    ) -> ForgetResult:
        live = arrays if arrays is not None else self._recorder.live
        settings = replace(settings, min_clients=max(settings.min_clients, self._usual_clients()))
        who, budget = (asks.name, asks.budget) if asks else (None, None)
        session = Session(grid, row, self.store, settings, live, requester=who, budget=budget)
        try:
            self.results.append(session.run())
        finally:  # once it is decided, no training must go on from the values of before, whatever came up
            update, decided = session.result.update, session.decided
            if live is not None and update is not None and (decided or session.progress.behind):
                dampen_arrays(live, update)
                self._recorder.refresh(live)
            if decided and update is not None:
                names = list(live if live is not None else self.store.signature() or ())
                dampen_memory(self.strategy, update, names, live)
        return session.result

    def _recall(self, row: RequestRow) -> ForgetResult:
        """The result of a request that was served before the server died."""
        result = from_facts(self.store, row, self.settings)
        log.info("request %d was served before: %s", row.id, result.message)
        self.results.append(result)
        return result

    def deliver(self, grid: Grid) -> None:
        """Give clients that are connected the updates that they have missed."""
        deliver_outstanding(self._quick(grid), self.store, list(grid.get_node_ids()))

    def _usual_clients(self) -> int:
        """How many clients to wait for.

        Before any round, when clients may still be connecting, as many as the inner strategy would; later,
        those that are gone are away.
        """
        usual = 1 if self._sent else getattr(self.strategy, "min_available_nodes", 1)
        return usual if isinstance(usual, int) else 1

    def _quick(self, grid: Grid) -> Exchange:
        """For questions that need no computing: they must not hold up a round for long."""
        return Exchange(grid, min(self.settings.timeout, QUICK))

    def _serve_due(self, grid: Grid, arrays: ArrayRecord, rounds_done: int | None) -> bool:
        """Serve what is due, if anything; a request that cannot be served does not stop the training."""
        any_due = False
        for due in self._intake.due(rounds_done, self.settings):
            any_due, row = True, None
            try:
                row = due.take_up(self.store)
                if self.on_request and decision_of(self.store, row) is None:
                    self.on_request(self.store)
                result = self._forget(grid, row, arrays, due.settings, due.requester)
            except Exception as e:
                log.exception("the request to forget %s was not served", named(due.request))
                text = f"failed: {type(e).__name__}: {e}"
                result = ForgetResult(due.request, due.settings, message=text)
                self.results.append(result)
            self._intake.settle(due, result, row)
        return any_due

    def stored_arrays(self) -> ArrayRecord:
        """The newest global model in the store, to go on from.

        Raises:
            StoreError: If there is none.
        """
        return records.to_arrays(self.store.latest()[1].state)

    # ------------------------------------------------------------------ the run
    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's rounds, then serve the requests that are left.

        Takes what the inner strategy's own ``start`` takes. If the last run in the store, of as many rounds,
        was interrupted, it goes on: from its last recorded round, with what the inner strategy remembered
        and without the model given here. Requests that were submitted and served then are not served again,
        their results are in ``results``; one that was interrupted goes on after its last completed phase.
        With ``num_rounds=0`` on a store that holds models nothing is trained and no run begins: what is due
        is served on the store's newest global model, and ``initial_arrays`` is not used.

        Returns:
            What the inner strategy's ``start`` returns; after an interruption, without the metrics of the
            rounds before it.

        Raises:
            StoreError: If the store's model, strategy or snapshot does not fit.
        """
        own = type(self.strategy).start is not Strategy.start
        loop = Loop(self.strategy.start if own else super().start, args, kwargs)
        if loop.rounds == 0 and len(self.store.umig):
            result = Result(arrays=self.stored_arrays())
            self._serve_due(grid, result.arrays, None)
            return result
        arrays = self._begin(loop, initial_arrays)
        run = self._recovery.run
        assert run is not None
        result = Result(arrays=arrays)
        if not run.finished and not (run.done and loop.rounds == 0):
            with self._hooked(run.done, own=own):
                result = loop.run(grid, arrays)
            renumber(result, run.done)
        final = getattr(result, "arrays", None) or self._recorder.live or arrays
        served = self._serve_due(grid, final, None)
        if served and result is not None:  # a loop of one's own may return nothing
            result.arrays = final
        self.store.runs.finish(run.id)
        return result

    def _begin(self, loop: Loop, initial: ArrayRecord) -> ArrayRecord:
        """Begin a run, or take up the one that was interrupted; returns the model to start from."""
        run = self.store.runs.interrupted(loop.rounds)
        if run is None:
            self._recorder.begin_run()
            self._recovery.begin(loop.rounds, self._recorder.offset)
            return initial
        arrays, node = self._recovery.resume(run, initial)
        self._recorder.resume_run(run, arrays, node)
        loop.go_on(run.done)
        for row in self._intake.recalled(run):
            self._recall(row)
        return arrays

    @contextmanager
    def _hooked(self, done: int, *, own: bool) -> Iterator[None]:
        """While a loop runs: count on from ``done``; put this wrapper's hooks on a strategy with its own."""
        self._done = done
        self._inner_hooks = {h: getattr(self.strategy, h) for h in HOOKS} if own else {}
        for hook in self._inner_hooks:
            setattr(self.strategy, hook, getattr(self, hook))
        try:
            yield
        finally:
            for hook in self._inner_hooks:
                delattr(self.strategy, hook)
            self._done, self._inner_hooks = 0, {}

    def _inner(self, hook: str) -> Any:
        return self._inner_hooks.get(hook) or getattr(self.strategy, hook)

    def summary(self) -> None:
        """Log the inner strategy's summary, and where lineage and checkpoints go."""
        log.info("lineage and checkpoints: %s", self.store.folder)
        self.strategy.summary()

    # ------------------------------------------------------------------ the four hooks
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Serve what is due, note the model sent, and give those who train the updates that they missed."""
        server_round += self._done
        self._recorder.broadcast(server_round, arrays)
        self._serve_due(grid, arrays, server_round - 1)
        # A list: Flower's grids iterate over the messages more than once.
        self._sent = list(self._inner("configure_train")(server_round, arrays, config, grid))
        self._clients.meet(self._quick(grid), [m.metadata.dst_node_id for m in self._sent])
        tell_forgotten(self.store, self._sent, self._clients.owner)
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Copy the updates, let the inner strategy aggregate, then record the round in one transaction."""
        server_round += self._done
        replies = list(replies)
        answers = match(self._sent, replies)
        owners = {node: self._clients.owner(node) for node in answers.ok}
        if self.deterministic:
            order = {m.metadata.message_id: self._clients.owner(m.metadata.dst_node_id) for m in self._sent}
            replies.sort(key=lambda m: natural(order.get(m.metadata.reply_to_message_id, "")))
        contents = {
            owners[node]: answers.ok[node] for node in sorted(owners, key=lambda n: natural(owners[n]))
        }
        updates = self._recorder.read_updates(server_round, contents)
        arrays, metrics = self._inner("aggregate_train")(server_round, replies)
        self._recorder.record_round(server_round, updates, arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does; clients are told what was forgotten."""
        server_round += self._done
        messages = list(self._inner("configure_evaluate")(server_round, arrays, config, grid))
        tell_forgotten(self.store, messages, self._clients.owner)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the inner strategy does."""
        server_round += self._done
        metrics: MetricRecord | None = self._inner("aggregate_evaluate")(server_round, replies)
        return metrics
