"""Projects on Flower's legacy API: one line around what ``server_fn`` returns, and the mod."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import matrix
import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import (
    LegacyContext,
    Server,
    ServerApp,
    ServerAppComponents,
    ServerConfig,
    SimpleClientManager,
)
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg, FedAvgM, Strategy
from flwr.server.workflow import DefaultWorkflow
from matrix import quiet as quiet
from torch import nn

from fl_unlearn.audit_verify import verify_store
from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.flower.legacy import LegacyStrategy, forgotten_classes, remember
from fl_unlearn.flower.legacy_records import to_arrays
from fl_unlearn.inbox import Inbox
from fl_unlearn.lineage import NodeKind
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, ForgetRequest, RequestError, UnlearnError
from simulations.figures.strategy_matrix import federation
from simulations.figures.strategy_matrix.federation import Problem
from simulations.local_grid import LocalGrid

THREE = ForgetRequest((3,))
CLIENTS = 3

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def problem() -> Problem:
    return matrix.problem(CLIENTS)


def first(problem: Problem) -> Parameters:
    return ndarrays_to_parameters([v.numpy() for v in problem.model().state_dict().values()])


def options(problem: Problem, **more: Any) -> dict[str, Any]:
    n = len(problem.clients)
    common = {"min_available_clients": n, "min_fit_clients": n, "fraction_evaluate": 0.0}
    return {**common, "initial_parameters": first(problem), **more}


def play(
    problem: Problem,
    strategy: Strategy,
    store: Path,
    rounds: int = 4,
    network: LocalGrid | None = None,
    **given: Any,
) -> Server:
    """Run a legacy project with the one line; returns its server."""
    random.seed(0)
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(1)

    def server_fn(context: Context) -> ServerAppComponents:
        project = ServerAppComponents(server=server, config=ServerConfig(num_rounds=rounds))
        return remember(project, store=store, settings=matrix.QUICK, **given)

    ServerApp(server_fn=server_fn)(network or connected(problem), Context(1, 1, {}, RecordDict(), {}))
    return server


def connected(problem: Problem) -> LocalGrid:
    return federation.grid(problem, federation.legacy_app)


def on_three(problem: Problem, parameters: Parameters) -> float:
    return problem.accuracies(parameters_to_ndarrays(parameters))[0]


def test_a_request_for_the_end_changes_the_servers_model_and_the_store(
    problem: Problem, tmp_path: Path
) -> None:
    server = play(problem, FedAvg(**options(problem)), tmp_path, requests=[(THREE, None)])
    strategy = server.strategy
    assert isinstance(strategy, LegacyStrategy)
    (result,) = strategy.results
    assert result.committed
    assert on_three(problem, server.parameters) <= matrix.TOLERANCE
    latest = strategy.store.latest()[1].state
    assert list(latest) == [str(i) for i in range(4)]
    for held, array in zip(latest.values(), parameters_to_ndarrays(server.parameters), strict=True):
        assert np.array_equal(held.numpy(), array)
    assert result.outstanding == ()
    assert strategy.fraction_evaluate == 0.0
    assert verify_store(strategy.store).ok


def test_lineage_of_a_legacy_run(problem: Problem, tmp_path: Path) -> None:
    server = play(problem, FedAvg(**options(problem)), tmp_path, rounds=2)
    umig = server.strategy.store.umig  # type: ignore[attr-defined]
    assert umig.parents("r0002-client-1") == {"r0001-global": 1.0}
    assert umig.parents("r0002-global") == pytest.approx({f"r0002-client-{i}": 1 / 3 for i in range(3)})
    node = umig.node("r0001-client-2")
    assert (node.owner, node.examples) == ("2", 32)
    assert "train_loss" in node.metadata["metrics"]


def test_the_plain_components_of_a_project_are_enough(problem: Problem, tmp_path: Path) -> None:
    config = ServerConfig(num_rounds=2)
    made = remember(ServerAppComponents(strategy=FedAvg(**options(problem)), config=config), store=tmp_path)
    assert (made.config, made.strategy, made.client_manager) == (config, None, None)
    ServerApp(server_fn=lambda _: made)(connected(problem), Context(1, 1, {}, RecordDict(), {}))
    store = made.server.strategy.store  # type: ignore[union-attr]
    assert [n.round for n in store.umig.nodes(kind=NodeKind.AGGREGATE)] == [1, 2]
    with pytest.raises(RequestError, match="after_round counts rounds from 0 up, got -1"):
        remember(ServerAppComponents(), store=store, requests=[(THREE, -1)])


def test_a_model_that_the_strategy_holds_too_is_dampened_once(problem: Problem, tmp_path: Path) -> None:
    """Before the first round, FedAvgM and the server hold the same object."""
    server = play(problem, FedAvg(**options(problem)), tmp_path)
    server.strategy.store.close()  # type: ignore[attr-defined]
    trained = server.parameters
    inner = FedAvgM(**{**options(problem), "initial_parameters": trained}, server_learning_rate=0.5)
    seen: list[tuple[list[bytes], list[bytes]]] = []

    class Watching(FedAvgM):
        def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
            assert self.initial_parameters is not None
            seen.append((list(parameters.tensors), list(self.initial_parameters.tensors)))
            return super().configure_fit(server_round, parameters, client_manager)

    inner.__class__ = Watching
    server = play(problem, inner, tmp_path, rounds=1, requests=[(THREE, 0)])
    result = server.strategy.results[0]  # type: ignore[attr-defined]
    assert result.committed
    ((sent, kept),) = seen
    assert sent == kept
    for array, tensor in zip(
        parameters_to_ndarrays(Parameters(sent, "")), result.state.values(), strict=True
    ):
        assert np.array_equal(array, tensor.numpy())


class Failing(FedAvg):
    """Aggregates nothing from some round on."""

    stops = 4

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        return (
            (None, {})
            if server_round >= self.stops
            else super().aggregate_fit(server_round, results, failures)
        )


def test_the_server_goes_on_from_the_unlearned_model_when_rounds_fail(
    problem: Problem, tmp_path: Path
) -> None:
    server = play(problem, Failing(**options(problem)), tmp_path, rounds=5, requests=[(THREE, 3)])
    assert server.strategy.results[0].committed  # type: ignore[attr-defined]
    assert on_three(problem, server.parameters) <= matrix.TOLERANCE


def test_a_workflow_goes_on_from_the_unlearned_model_when_rounds_fail(
    problem: Problem, tmp_path: Path
) -> None:
    """It keeps the model in a record of its own, out of reach: what it sends is put right each time."""
    sent: dict[int, float] = {}

    def evaluate(round_: int, arrays: Any, config: Any) -> None:
        sent[round_] = problem.accuracies(arrays)[0]

    inner = Failing(**options(problem, evaluate_fn=evaluate))
    strategy = LegacyStrategy(inner, store=tmp_path, settings=matrix.QUICK)
    strategy.submit(THREE, after_round=3)
    context = Context(1, 1, {}, RecordDict(), {})
    whole = LegacyContext(context, ServerConfig(num_rounds=5), strategy, SimpleClientManager())
    DefaultWorkflow()(connected(problem), whole)
    assert strategy.results[0].committed
    assert sent[3] > 0.7
    assert sent[4] == sent[5] <= matrix.TOLERANCE


def test_what_clients_are_told_is_no_part_of_the_projects_configuration(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"lr": 0.1}
    told: list[Any] = []

    class Client(federation.LegacyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            told.append((self.client, dict(config)))
            return super().fit(parameters, config)

    monkeypatch.setattr(federation, "LegacyClient", Client)
    strategy = FedAvg(**options(problem, on_fit_config_fn=lambda _: config))
    play(problem, strategy, tmp_path, requests=[(THREE, 3)])
    assert config == {"lr": 0.1}
    assert [c for _, c in told[: 3 * CLIENTS]] == [config] * 3 * CLIENTS
    assert all(forgotten_classes(c, i) == (3,) for i, c in told[3 * CLIENTS :])
    assert len(told) == 4 * CLIENTS


def test_forgotten_classes() -> None:
    said = [{"classes": [3, 1], "clients": []}, {"classes": [7], "clients": ["2"]}]
    config = {"unlearn.forgotten": json.dumps(said)}
    assert forgotten_classes({}, 0) == ()
    assert forgotten_classes(config, 0) == forgotten_classes(config, "0") == (1, 3)
    context = Context(1, 1, {"partition-id": 2}, RecordDict(), {})
    assert forgotten_classes(config, context) == (1, 3, 7)
    assert forgotten_classes(config, context, lambda c: "hospital") == (1, 3)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"classes": ["a"], "clients": []}]', '[{"classes": [1]}]', 7])
def test_what_cannot_be_read_is_said(text: Any) -> None:
    with pytest.raises(AnswerError, match="what the server says to leave out cannot be read"):
        forgotten_classes({"unlearn.forgotten": text}, 0)


def test_documents_that_wait_in_the_store_are_served(problem: Problem, tmp_path: Path) -> None:
    RunStore(tmp_path).close()
    Inbox(tmp_path).add(RequestDocument.new("office", THREE).to_bytes())
    server = play(problem, FedAvg(**options(problem)), tmp_path, network=arriving(problem, tmp_path))
    results = server.strategy.results  # type: ignore[attr-defined]
    assert [r.request.classes for r in results if r.committed] == [(3,)]


def arriving(problem: Problem, folder: Path) -> LocalGrid:
    """A federation with whose last training message a document arrives."""
    trained: list[int] = []

    def tamper(message: Any, reply: Any) -> Any:
        if message.metadata.message_type == "train":
            trained.append(message.metadata.dst_node_id)
            if len(trained) == 4 * CLIENTS:
                Inbox(folder).add(RequestDocument.new("office", THREE).to_bytes())
        return reply

    network = connected(problem)
    network.tamper = tamper
    return network


def test_a_model_with_running_statistics_and_a_count(tmp_path: Path) -> None:
    """A list of arrays does not say which are parameters, and one holds an integer without a dimension."""
    plain = matrix.problem(CLIENTS)

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = [nn.Linear(fed.FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, fed.CLASSES)]
            return nn.Sequential(*layers)

    problem = Problem(model, plain.clients, plain.test, 3, epochs=4)
    server = play(problem, FedAvg(**options(problem)), tmp_path, rounds=5, requests=[(THREE, 4)])
    assert server.strategy.results[0].committed  # type: ignore[attr-defined]
    arrays = parameters_to_ndarrays(server.parameters)
    assert (arrays[6].dtype, arrays[6].shape) == (np.int64, ())
    assert problem.accuracies(arrays)[0] <= matrix.TOLERANCE


def test_clients_that_are_reached_without_a_grid_cannot_be_asked(problem: Problem, tmp_path: Path) -> None:
    """The request fails in words, and nothing is changed."""

    class Away(ClientProxy):
        node_id = 1
        get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]

    Away.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    manager = SimpleClientManager()
    manager.register(Away("1"))  # type: ignore[abstract]
    strategy = LegacyStrategy(FedAvg(min_available_clients=1, min_fit_clients=1), store=tmp_path)
    strategy.submit(THREE, after_round=0)
    parameters = first(problem)
    before = list(parameters.tensors)
    with pytest.raises(UnlearnError, match="is reached over a Grid"):
        strategy.configure_fit(1, parameters, manager)
    assert parameters.tensors == before
    assert "UnlearnError: no client of this server is reached over a Grid" in strategy.results[0].message


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (
            lambda p: LegacyStrategy(fed.fedavg(), store=p),
            r"wraps a flwr\.server\.strategy\.Strategy, got FedAvg",
        ),
        (lambda p: UnlearningStrategy(FedAvg(), store=p), r"use fl_unlearn\.flower\.legacy\.remember"),
    ],
    ids=["today's in legacy", "legacy in today's"],
)
def test_the_wrong_kind_of_strategy(wrap: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnlearnError, match=words):
        wrap(tmp_path)


def test_parameters_that_are_no_arrays_are_bytes() -> None:
    record = to_arrays(Parameters([b"{}", b"abc"], ""))
    assert [a.numpy().tobytes() for a in record.values()] == [b"{}", b"abc"]
    assert {a.dtype for a in record.values()} == {"uint8"}
    assert len(to_arrays(Parameters([], ""))) == 0
