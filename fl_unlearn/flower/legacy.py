"""Projects on Flower's legacy API: ``server_fn``, ``flwr.server.strategy``, ``NumPyClient``.

One line on each side. On the server, around what ``server_fn`` returns:

    return legacy.remember(ServerAppComponents(strategy=strategy, config=config), store=...)

and on the clients `unlearning_mod`: ``ClientApp(client_fn=client_fn, mods=[unlearning_mod(...)])``.

The legacy strategy is wrapped by another one, because only a strategy sees both the model that the server
holds and the clients' updates as they came; the Grid, for questions to clients, is that of Flower's client
proxies. A run that died is not taken up again: it begins anew, and its lineage goes on in the same store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, Context
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
)
from flwr.server import Server, ServerAppComponents, SimpleClientManager
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg, Strategy
from flwr.serverapp import Grid

from fl_unlearn.flower import records
from fl_unlearn.flower.client import NameFn
from fl_unlearn.flower.exchange import natural
from fl_unlearn.flower.forgotten import SAMPLES, classes_for, requests_of, samples_of, united, updates_of
from fl_unlearn.flower.legacy_records import content_of, to_arrays
from fl_unlearn.flower.naming import partition_name
from fl_unlearn.flower.recorder import Update
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.flower.server import UnlearningStrategy
from fl_unlearn.flower.targets import Share
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, ForgetRequest, UnlearnError

log = logging.getLogger(__name__)

Failures = list[tuple[ClientProxy, Any] | BaseException]
Metrics = dict[str, Scalar]
Ins = TypeVar("Ins", FitIns, EvaluateIns)
T = TypeVar("T")


def remember(
    components: ServerAppComponents,
    *,
    store: RunStore | str | Path,
    requests: Iterable[tuple[ForgetRequest, int | None]] = (),
    **options: Any,
) -> ServerAppComponents:
    """Make a legacy project able to forget: wraps what ``server_fn`` returns.

    Args:
        components: The project's; a server of its own is kept, and its strategy wrapped.
        store: Folder of the run's store (made when absent), or a store that is open already.
        requests: What to forget, and the round after which (0: before the first; None: after the last).
        **options: What `UnlearningStrategy` takes besides.

    Returns:
        Components whose server holds a `LegacyStrategy`.

    Raises:
        RequestError: If the plug-in cannot serve such a request.
        SettingsError: As `UnlearningStrategy`.
        StoreError: If the store cannot be opened.
    """
    server = components.server or Server(
        client_manager=components.client_manager or SimpleClientManager(),
        strategy=components.strategy or FedAvg(),
    )
    strategy = LegacyStrategy(server.strategy, store=store, **options)
    for request, after_round in requests:
        strategy.submit(request, after_round=after_round)
    server.set_strategy(strategy)
    train = server.fit

    def fit(num_rounds: int, timeout: float | None) -> Any:
        history = train(num_rounds, timeout)
        strategy.finish(server.parameters, server.client_manager())
        return history

    server.fit = fit  # type: ignore[method-assign]
    return ServerAppComponents(server=server, config=components.config)


def forgotten_classes(
    config: Mapping[str, Any], client: str | int | Context, client_name: NameFn = partition_name
) -> tuple[int, ...]:
    """The classes that a client must leave out of its training from now on; empty before any request.

    Args:
        config: The ``config`` that ``fit`` of a ``NumPyClient`` is given.
        client: The client's name, which is its partition id unless `unlearning_mod` was told otherwise, or
            the Context that ``client_fn`` was given.
        client_name: As given to `unlearning_mod`; used with a Context.

    Raises:
        AnswerError: If the server's entry cannot be read.
    """
    name = client_name(client) if isinstance(client, Context) else str(client)
    return _entry(config, records.FORGOTTEN, lambda requests: classes_for(requests, name))


def forgotten_samples(config: Mapping[str, Any]) -> Share:
    """The samples that a client must leave out of its training from now on; empty before any request.

    Takes the ``config`` that ``fit`` is given; the rest is as of `forgotten.forgotten_samples`.
    """
    return _entry(config, SAMPLES, united)


def _entry(config: Mapping[str, Any], key: str, read: Callable[[Any], T]) -> T:
    text = config.get(key, "[]")
    try:
        return read(json.loads(text))
    except (ValueError, TypeError, KeyError) as e:
        raise AnswerError(f"what the server says to leave out cannot be read: {str(text)[:200]!r}") from e


class LegacyStrategy(Strategy):
    """Wraps a legacy strategy as `UnlearningStrategy` wraps one of today's.

    For projects with a workflow or a loop of their own; with ``server_fn`` use `remember`. Wrap outermost.

    Args:
        strategy: Any ``flwr.server.strategy.Strategy``.
        store: Folder of the run's store, or a store that is open already.
        **options: What `UnlearningStrategy` takes besides.

    Raises:
        UnlearnError: If ``strategy`` is no legacy strategy.
        SettingsError: As `UnlearningStrategy`.
        StoreError: If the store cannot be opened.
    """

    def __init__(self, strategy: Strategy, *, store: RunStore | str | Path, **options: Any) -> None:
        if not isinstance(strategy, Strategy):
            raise UnlearnError(
                f"LegacyStrategy wraps a flwr.server.strategy.Strategy, got {type(strategy).__name__}; one "
                "of flwr.serverapp.strategy goes into UnlearningStrategy"
            )
        self.strategy = strategy
        self._core = _Core(cast(Any, strategy), store=store, **options)
        self._model: tuple[list[bytes], ArrayRecord] = ([], ArrayRecord())
        self._replaced: tuple[list[bytes], list[bytes]] | None = None

    def __getattr__(self, name: str) -> Any:
        """The inner strategy's own attributes, so that code which knows it goes on working."""
        if name in ("strategy", "_core"):
            raise AttributeError(name)
        return getattr(self.strategy, name)

    # ------------------------------------------------------------------ requests
    @property
    def store(self) -> RunStore:
        """The run's store."""
        return self._core.store

    @property
    def results(self) -> list[ForgetResult]:
        """What became of the requests served so far, in order."""
        return self._core.results

    def submit(self, request: ForgetRequest, *, after_round: int | None = None) -> None:
        """Queue a request, as `UnlearningStrategy.submit`; those for after the last round need `finish`."""
        self._core.submit(request, after_round=after_round)

    def finish(self, parameters: Parameters, client_manager: ClientManager) -> None:
        """Serve what is left when training has ended; ``parameters`` is changed in place."""
        self._serve(parameters, client_manager, None)

    def _serve(self, parameters: Parameters, clients: ClientManager, rounds_done: int | None) -> None:
        """Serve what is due, and put the unlearned model into ``parameters``, which the server holds."""
        arrays = self._arrays(self._renewed(parameters))
        if rounds_done is not None:
            self._core.sees(rounds_done + 1, arrays)
        before, data = list(parameters.tensors), [array.data for array in arrays.values()]
        self._core.serve(lambda: _grid(clients, self._core.settings.timeout), arrays, rounds_done)
        changed = [i for i, array in enumerate(arrays.values()) if array.data is not data[i]]
        for i in changed:
            parameters.tensors[i] = arrays[str(i)].data
        if changed:
            self._replaced = (before, list(parameters.tensors))
        self._model = (list(parameters.tensors), arrays)

    def _renewed(self, parameters: Parameters) -> Parameters:
        """Put the unlearned model in the place of the one before, which workflows keep if a round fails."""
        if self._replaced is not None and parameters.tensors == self._replaced[0]:
            parameters.tensors[:] = self._replaced[1]
        return parameters

    def _arrays(self, parameters: Parameters) -> ArrayRecord:
        """The parameters' record, the same as long as they are the same."""
        known, arrays = self._model
        if len(known) != len(parameters.tensors) or any(
            a is not b for a, b in zip(known, parameters.tensors, strict=True)
        ):
            arrays = to_arrays(parameters)
            self._model = (list(parameters.tensors), arrays)
        return arrays

    # ------------------------------------------------------------------ Flower's hooks
    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """As the inner strategy does."""
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Serve what is due, note the model sent, and give those who train the updates that they missed."""
        self._serve(parameters, client_manager, server_round - 1)
        chosen = self.strategy.configure_fit(server_round, parameters, client_manager)
        if chosen:
            self._core.meet([proxy for proxy, _ in chosen])
        return self._told(chosen)

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: Failures
    ) -> tuple[Parameters | None, Metrics]:
        """Copy the updates, let the inner strategy aggregate, then record the round in one transaction."""
        named = sorted(results, key=lambda r: natural(self._core.owner(r[0])))
        updates = self._core.read(server_round, named)
        if self._core.deterministic:
            results = named
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, failures)
        self._core.record(server_round, updates, self._arrays(parameters) if parameters else None)
        if parameters:
            self._replaced = None
        return parameters, metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """As the inner strategy does; clients are told what was forgotten."""
        chosen = self.strategy.configure_evaluate(server_round, self._renewed(parameters), client_manager)
        return self._told(chosen)

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: Failures
    ) -> tuple[float | None, Metrics]:
        """As the inner strategy does."""
        return self.strategy.aggregate_evaluate(server_round, results, failures)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """As the inner strategy does."""
        return self.strategy.evaluate(server_round, self._renewed(parameters))

    def _told(self, chosen: list[tuple[ClientProxy, Ins]]) -> list[tuple[ClientProxy, Ins]]:
        """Messages that say what to leave out from now on: as text, since legacy messages carry scalars."""
        requests, samples, out = requests_of(self.store), samples_of(self.store), []
        updates = updates_of(self.store)
        said = {records.FORGOTTEN: json.dumps(requests), records.UPDATES: json.dumps(updates)}
        for proxy, ins in chosen or ():
            told: dict[str, Any] = dict(said) if updates else {}
            if own := samples.get(self._core.owner(proxy)):
                told[SAMPLES] = json.dumps(own)
            out.append((proxy, replace(ins, config={**ins.config, **told})))
        return out


class _Core(UnlearningStrategy):
    """The plug-in behind the legacy hooks: requests, lineage, clients."""

    inner = Strategy
    _trained = False

    def sees(self, server_round: int, arrays: ArrayRecord) -> None:
        """Note the model that a round starts from."""
        self._recorder.broadcast(server_round, arrays)

    def serve(self, grid: Callable[[], Grid], arrays: ArrayRecord, rounds_done: int | None) -> None:
        """Serve what is due; before the first round there may be no client, and so no Grid, to ask."""
        self._find_grid = grid
        self._serve_due(cast(Grid, None), arrays, rounds_done)

    def _forget(self, grid: Grid | None, *args: Any) -> ForgetResult:
        return super()._forget(self._find_grid() if grid is None else grid, *args)

    def meet(self, proxies: list[ClientProxy]) -> None:
        """Ask clients who they are."""
        self._clients.meet(self._quick(_grid_of(proxies)), [proxy.node_id for proxy in proxies])

    def owner(self, proxy: ClientProxy) -> str:
        """The client's name."""
        return self._clients.owner(proxy.node_id)

    def read(self, server_round: int, results: list[tuple[ClientProxy, FitRes]]) -> list[Update]:
        """Copy what is to be recorded of the clients' results."""
        contents = {self.owner(proxy): content_of(result, self._recorder.key) for proxy, result in results}
        return self._recorder.read_updates(server_round, contents)

    def record(self, server_round: int, updates: list[Update], arrays: ArrayRecord | None) -> None:
        """Record a round."""
        self._recorder.record_round(server_round, updates, arrays)
        self._trained = True

    def _usual_clients(self) -> int:
        strategy: Any = self.strategy
        while not hasattr(strategy, "min_available_clients") and hasattr(strategy, "strategy"):
            strategy = strategy.strategy
        usual = getattr(strategy, "min_available_clients", 1)
        return usual if isinstance(usual, int) and not self._trained else 1


def _grid(clients: ClientManager, timeout: float) -> Grid:
    if not clients.all():
        clients.wait_for(1, int(min(timeout, 2**31)))
    return _grid_of(clients.all().values())


def _grid_of(proxies: Iterable[ClientProxy]) -> Grid:
    for proxy in proxies:
        grid = getattr(proxy, "grid", None)
        if isinstance(grid, Grid):
            return grid
    raise UnlearnError(
        "no client of this server is reached over a Grid, so none can be asked; run the project as a "
        "ServerApp (`flwr run`), not with start_server"
    )
