"""`UnlearningStrategy`: one wrapper that lets any Flower strategy forget.

While nothing is forgotten, the wrapped strategy's results are bit for bit those of the bare one: every call
is delegated, and what is recorded is copied before the inner strategy sees (and perhaps empties) it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_unlearn.flower import records
from fl_unlearn.flower.broadcast import deliver_outstanding, identify
from fl_unlearn.flower.exchange import Exchange, match, unidentified
from fl_unlearn.flower.recorder import Recorder
from fl_unlearn.flower.server_state import dampen_arrays, dampen_strategy
from fl_unlearn.flower.session import ForgetResult, forget
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, RequestError, UnlearnError, UnlearnSettings

log = logging.getLogger(__name__)

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class UnlearningStrategy(Strategy):
    """Wraps a strategy: records its lineage while it trains, and serves forget requests.

    Wrap outermost: around a differential-privacy wrapper, not inside it.

    Args:
        strategy: Any ``flwr.serverapp.strategy.Strategy``.
        store: Folder of the run's store (made when absent), or a store that is open already.
        settings: How requests are served.
        keep: Which models are kept as checkpoints; only with a folder as ``store``.
        deterministic: Hand replies to the strategy in the order of client names instead of their arrival,
            so that floating-point sums, and with them the whole run, repeat exactly.
        on_request: Called with the store right before a queued request is served: the place to measure
            the stored models as they were.

    Attributes:
        store: The run's store.
        results: What became of the requests served so far, in order.

    Raises:
        StoreError: If the store cannot be opened.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        store: RunStore | str | Path,
        settings: UnlearnSettings | None = None,
        keep: KeepPolicy | None = None,
        deterministic: bool = False,
        on_request: Callable[[RunStore], None] | None = None,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise UnlearnError(
                f"UnlearningStrategy wraps a flwr.serverapp.strategy.Strategy, got {type(strategy).__name__}"
                "; legacy strategies (flwr.server.strategy) are not supported here"
            )
        self.strategy = strategy
        self.store = store if isinstance(store, RunStore) else RunStore(store, keep=keep)
        self.settings = settings or UnlearnSettings()
        self.deterministic, self.on_request = deterministic, on_request
        self.results: list[ForgetResult] = []
        self._recorder = Recorder(self.store, getattr(strategy, "weighted_by_key", "num-examples"))
        self._names: dict[int, str | None] = {}
        self._sent: list[Message] = []
        self._queue: list[tuple[float, ForgetRequest]] = []
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
        """
        if after_round is not None and after_round < 0:
            raise RequestError(f"after_round counts rounds from 0 up, got {after_round}")
        self._queue.append((float("inf") if after_round is None else after_round, request))

    def forget(self, grid: Grid, request: ForgetRequest, arrays: ArrayRecord | None = None) -> ForgetResult:
        """Serve a request now.

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
        live = arrays if arrays is not None else self._recorder.live
        settings = replace(self.settings, min_clients=max(self.settings.min_clients, self._usual_clients()))
        result = forget(grid, request, self.store, settings=settings, current=live)
        self.results.append(result)
        if result.committed and result.update is not None:
            if live is not None:
                dampen_arrays(live, result.update)
                self._recorder.refresh(live)
            names = list(live if live is not None else self.store.signature() or ())
            dampened, skipped = dampen_strategy(self.strategy, result.update, names, live)
            if dampened:
                log.info("dampened the server's own state too: %s", ", ".join(dampened))
            if skipped:
                log.warning("not understood, and left as it is, is what the server keeps in: %s", skipped)
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
        return Exchange(grid, min(self.settings.timeout, 60.0))

    def _serve_due(self, grid: Grid, arrays: ArrayRecord, rounds_done: float) -> None:
        """Serve what is due; a request that cannot be served does not stop the training."""
        due = [r for after, r in self._queue if after <= rounds_done]
        self._queue = [(after, r) for after, r in self._queue if after > rounds_done]
        for request in due:
            try:
                if self.on_request:
                    self.on_request(self.store)
                self.forget(grid, request, arrays)
            except Exception as e:
                log.exception("the request for classes %s was not served", list(request.classes))
                text = f"failed: {type(e).__name__}: {e}"
                self.results.append(ForgetResult(request, self.settings, message=text))

    def stored_arrays(self) -> ArrayRecord:
        """The newest global model in the store, to go on from.

        Raises:
            StoreError: If there is none.
        """
        return records.to_arrays(self.store.latest()[1].state)

    # ------------------------------------------------------------------ the run
    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's rounds, then serve the requests that are left.

        Takes what the inner strategy's own ``start`` takes.
        """
        self._recorder.begin_run()
        if type(self.strategy).start is Strategy.start:
            result = super().start(grid, initial_arrays, *args, **kwargs)
        else:
            with self._hooked():
                result = self.strategy.start(grid, initial_arrays, *args, **kwargs)
        if self._queue:
            final = getattr(result, "arrays", None) or self._recorder.live or initial_arrays
            self._serve_due(grid, final, float("inf"))
            if result is not None:  # a loop of one's own may return nothing
                result.arrays = final
        return result

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Put this wrapper's hooks on an inner strategy that runs its own loop, for as long as it runs."""
        self._inner_hooks = {h: getattr(self.strategy, h) for h in HOOKS}
        for hook in HOOKS:
            setattr(self.strategy, hook, getattr(self, hook))
        try:
            yield
        finally:
            for hook in HOOKS:
                delattr(self.strategy, hook)
            self._inner_hooks = {}

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
        self._recorder.broadcast(server_round, arrays)
        self._serve_due(grid, arrays, server_round - 1)
        # A list: Flower's grids iterate over the messages more than once.
        self._sent = list(self._inner("configure_train")(server_round, arrays, config, grid))
        self._meet(grid, [m.metadata.dst_node_id for m in self._sent])
        self._tell_forgotten()
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Copy the updates, let the inner strategy aggregate, then record the round in one transaction."""
        replies = list(replies)
        answers = match(self._sent, replies)
        owners = {node: self._owner(node) for node in answers.ok}
        if self.deterministic:
            order = {m.metadata.message_id: self._owner(m.metadata.dst_node_id) for m in self._sent}
            replies.sort(key=lambda m: _natural(order.get(m.metadata.reply_to_message_id, "")))
        contents = {
            owners[node]: answers.ok[node] for node in sorted(owners, key=lambda n: _natural(owners[n]))
        }
        updates = self._recorder.read_updates(server_round, contents)
        arrays, metrics = self._inner("aggregate_train")(server_round, replies)
        self._recorder.record_round(server_round, updates, arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        messages: Iterable[Message] = self._inner("configure_evaluate")(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the inner strategy does."""
        metrics: MetricRecord | None = self._inner("aggregate_evaluate")(server_round, replies)
        return metrics

    # ------------------------------------------------------------------ clients
    def _owner(self, node: int) -> str:
        return self._names.get(node) or unidentified(node)

    def _meet(self, grid: Grid, nodes: list[int]) -> None:
        """Ask nodes met for the first time who they are, and give those that are back what they missed."""
        exchange = self._quick(grid)
        new = [n for n in dict.fromkeys(nodes) if n not in self._names]
        if new:
            taken = set(self._names.values())
            for node, name in identify(exchange, new).items():
                self._names[node] = None if name in taken else name
                if self._names[node] is not None:
                    self.store.identify(unidentified(node), str(name))
            if strangers := [n for n in new if not self._names.get(n)]:
                log.warning(
                    "%d nodes did not say which client they are, or gave the name of another; is fl-unlearn "
                    "attached to the ClientApp? Their updates count as affected by every request",
                    len(strangers),
                )
        deliver_outstanding(exchange, self.store, nodes, self._names)

    def _tell_forgotten(self) -> None:
        """Tell clients in their training messages what to leave out from now on."""
        operations = self.store.operations.all()
        if not operations:
            return
        requests = [
            json.dumps({"classes": o.request["classes"], "clients": o.request["clients"]}) for o in operations
        ]
        for message in self._sent:
            message.content[records.FORGOTTEN] = ConfigRecord({"requests": requests})


def _natural(name: str) -> tuple[int, str]:
    """Sort key that puts client 2 before client 10."""
    return (int(name), "") if name.isdigit() else (1 << 62, name)
