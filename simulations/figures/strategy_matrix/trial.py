"""One strategy on one federation: what the model was after each round, and what became of a request."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.serverapp.strategy import Strategy

from fl_unlearn.flower import ForgetResult, UnlearningStrategy
from fl_unlearn.flower.legacy import LegacyStrategy, remember
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, UnlearnSettings
from simulations.figures.strategy_matrix import federation, legacy, today
from simulations.figures.strategy_matrix.federation import Problem

SEED = 3


@dataclass
class Trace:
    """What a run left.

    Attributes:
        models: Digest of the global model after each round, the first model's included.
        metrics: All aggregated metrics of each round, as text.
        forgotten: Test accuracy after each round on the class to forget.
        retained: The same on all others.
        results: What became of the requests.
        store: The run's store; None for a bare strategy.
    """

    models: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, list[str]] = field(default_factory=dict)
    forgotten: dict[int, float] = field(default_factory=dict)
    retained: dict[int, float] = field(default_factory=dict)
    results: list[ForgetResult] = field(default_factory=list)
    store: RunStore | None = None

    def note(self, kind: str, values: Iterable[tuple[int, Any]]) -> None:
        """Add metrics: pairs of round and value."""
        for round_, value in values:
            self.metrics.setdefault(round_, []).append(f"{kind}: {value!r}")

    def see(self, problem: Problem | None, round_: int, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Note a model; without a problem it is none that could be measured."""
        data = b"".join(a.dtype.str.encode() + repr(a.shape).encode() + a.tobytes() for a in arrays)
        self.models[round_] = hashlib.sha256(data).hexdigest()
        if problem is not None:
            self.forgotten[round_], self.retained[round_] = problem.accuracies(arrays)


def run_today(
    case: today.Case,
    problem: Problem,
    rounds: int,
    *,
    folder: Path | None = None,
    after_round: int | None = None,
    control: bool = False,
    settings: UnlearnSettings | None = None,
) -> Trace:
    """Train with a strategy of ``flwr.serverapp``.

    Args:
        case: The strategy.
        problem: The federation.
        rounds: Rounds of training.
        folder: Wrap the strategy, with its store here; None: the bare strategy.
        after_round: Ask, after this round, to forget the problem's class.
        control: Give the inner strategy back what it remembered before the request: what would be, were the
            model dampened and the server's own state not.
        settings: How the request is served.
    """
    random.seed(SEED)
    np.random.seed(SEED)
    trace, n = Trace(), len(problem.clients)
    strategy = case.make(n)
    on_request = _keep_memory(strategy, "configure_train") if control else None
    grid = federation.grid(problem, lambda p: federation.decorator_app(p, case.mods, trees=case.trees))
    first = [v.numpy() for v in problem.model().state_dict().values()]
    names = list(problem.model().state_dict())
    initial = ArrayRecord(dict(zip(names, map(Array, first), strict=True)))
    if case.trees:
        initial = ArrayRecord([np.array([], np.uint8)])
    wrapped: Strategy = strategy
    if folder is not None:
        wrapper = UnlearningStrategy(
            strategy,
            store=folder,
            on_request=on_request,
            settings=settings,
        )
        trace.store, trace.results, wrapped = wrapper.store, wrapper.results, wrapper
        if after_round is not None:
            wrapper.submit(ForgetRequest((problem.forget,)), after_round=after_round)

    def evaluate(round_: int, arrays: ArrayRecord) -> None:
        trace.see(None if case.trees else problem, round_, arrays.to_numpy_ndarrays())

    result = wrapped.start(grid, initial, num_rounds=rounds, evaluate_fn=evaluate)
    trace.note("train", result.train_metrics_clientapp.items())
    trace.note("evaluate", result.evaluate_metrics_clientapp.items())
    return trace


def run_legacy(
    case: legacy.Case,
    problem: Problem,
    rounds: int,
    *,
    folder: Path | None = None,
    after_round: int | None = None,
    control: bool = False,
    settings: UnlearnSettings | None = None,
) -> Trace:
    """As `run_today`, with a strategy of ``flwr.server.strategy``, ``server_fn`` and ``client_fn``."""
    random.seed(SEED)
    np.random.seed(SEED)
    trace, n = Trace(), len(problem.clients)
    plain = case.kind == "model"

    def evaluate(round_: int, arrays: Any, config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        trace.see(problem, round_, arrays)
        return 1 - (trace.forgotten[round_] + trace.retained[round_]) / 2, {}

    def server_fn(context: Context) -> ServerAppComponents:
        first = [v.numpy() for v in problem.model().state_dict().values()]
        strategy = case.make(n, ndarrays_to_parameters(first), evaluate)
        _in_order(strategy)
        if not plain:
            _see_bytes(strategy, trace)
        on_request = _keep_memory(strategy, "configure_fit") if control else None
        manager = SimpleClientManager()
        server = Server(client_manager=manager, strategy=strategy)
        server.set_max_workers(1)  # models are built from one global random generator
        made = ServerAppComponents(server=server, config=ServerConfig(num_rounds=rounds))
        if folder is not None:
            requests = [] if after_round is None else [(ForgetRequest((problem.forget,)), after_round)]
            made = remember(made, store=folder, requests=requests, settings=settings, on_request=on_request)
            assert isinstance(server.strategy, LegacyStrategy)
            trace.store, trace.results = server.strategy.store, server.strategy.results
        own = server.fit

        def fit(num_rounds: int, timeout: float | None) -> Any:
            history, seconds = own(num_rounds, timeout)
            trace.note("losses", history.losses_distributed)
            for kind in (history.metrics_distributed_fit, history.metrics_distributed):
                for name, values in kind.items():
                    trace.note(name, values)
            return history, seconds

        server.fit = fit  # type: ignore[method-assign]
        return made

    grid = federation.grid(problem, lambda p: federation.legacy_app(p, case.mods, case.kind))
    context = Context(1, 1, {}, RecordDict(), {})
    ServerApp(server_fn=server_fn)(grid, context)
    return trace


def _in_order(strategy: Any) -> None:
    """Hand results over in the order of the clients: Flower's legacy loop keeps them in a set."""
    for hook in ("aggregate_fit", "aggregate_evaluate"):
        own = getattr(strategy, hook)

        def ordered(round_: int, results: Any, failures: Any, own: Any = own) -> Any:
            return own(round_, sorted(results, key=lambda r: r[0].node_id), failures)

        setattr(strategy, hook, ordered)


def _see_bytes(strategy: Any, trace: Trace) -> None:
    """Note models that are no arrays."""
    own = strategy.aggregate_fit

    def aggregate(round_: int, results: Any, failures: Any) -> Any:
        parameters, metrics = own(round_, results, failures)
        trace.see(None, round_, [np.frombuffer(t, np.uint8) for t in parameters.tensors])
        return parameters, metrics

    strategy.aggregate_fit = aggregate


def _keep_memory(strategy: Any, hook: str) -> Callable[[RunStore], None]:
    """Copies what a strategy remembers when it is called, and gives it back at the next ``hook``."""
    saved: dict[str, Any] = {}
    own = getattr(strategy, hook)

    def give_back(*args: Any, **kwargs: Any) -> Any:
        vars(strategy).update(saved)
        saved.clear()
        return own(*args, **kwargs)

    def keep(store: RunStore) -> None:
        plain = {n: v for n, v in vars(strategy).items() if not callable(v)}
        saved.update(copy.deepcopy(plain))

    setattr(strategy, hook, give_back)
    return keep
