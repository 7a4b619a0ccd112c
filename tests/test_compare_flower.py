"""A comparison's federation behind Flower: the same answers, the same costs, and errors in words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from grid import LocalGrid, Tamper
from strategy_cases import Case, trained

import strategies
from fl_unlearn.flower import records
from fl_unlearn.types import MeasureError, StateDict
from simulations.compare import messages
from simulations.compare.app.fl_unlearn_compare import client_app
from simulations.compare.flower import FlowerFederation, respond
from simulations.compare.flower_train import train
from simulations.compare.train import open_store
from strategies.client import Client
from strategies.errors import StrategyError
from strategies.history import History
from strategies.measuring import measure_all
from strategies.tasks import TASKS, Answer, Settings, Tensors
from strategies.training import average, train_settings


def connected(tamper: Tamper | None = None, nodes: int = 3, case: Case | None = None) -> LocalGrid:
    """A Grid with the app's clients, whose node ids are not in the order of the partitions."""
    values = (case or trained()).setting.to_config()
    config = {key: "none" if value == "" else value for key, value in values.items()}
    apps = {900 - i: client_app.app for i in range(nodes)}
    return LocalGrid(apps, tamper, setting="digits-class", seed=0, **config)


def behind_flower(case: Case, tamper: Tamper | None = None) -> FlowerFederation:
    return FlowerFederation(connected(tamper, case=case), case.federation().request, timeout=7.0)


def equal(one: StateDict, other: StateDict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """The federation of `trained`, trained by Flower's FedAvg."""
    case = trained()
    with open_store(case.setting, 0, tmp_path_factory.mktemp("flower")) as store:
        train(connected(), case.setting, 0, store)
        yield History(store, case.history.training, case.history.head)


@pytest.fixture
def known() -> Iterator[Callable]:
    """Adds a task for the length of a test."""
    before = dict(TASKS)
    yield TASKS.__setitem__
    TASKS.clear()
    TASKS.update(before)


def test_clients_may_be_called_otherwise_than_their_partitions() -> None:
    names, theirs = ("w10", "b", "w9"), trained().clients
    app = ClientApp()

    def own(context: Context) -> Client:
        client = copy.copy(theirs[int(context.node_config["partition-id"])])
        client.name = names[client.index]
        return client

    app.query(messages.ACTION)(lambda message, context: respond(message, context, own))
    request = trained().federation().request
    federation = FlowerFederation(LocalGrid({7: app, 8: app, 9: app}), request)
    assert tuple(federation.clients) == names, "in the order of their indices"
    assert list(federation.clients.values()) == list(trained().federation().clients.values())
    assert list(federation.ask("identify", clients=["b", "w10"])) == ["b", "w10"]
    with pytest.raises(StrategyError, match="client w9 failed at 'tarin'"):
        federation.ask("tarin", clients=["w9"])


@pytest.mark.parametrize("setting", ["digits-class", "digits-client", "digits-samples"])
def test_it_knows_the_clients_and_what_they_have(setting: str) -> None:
    case = trained(setting)
    federation, local = behind_flower(case), case.federation()
    assert list(federation.clients.items()) == list(local.clients.items())
    assert list(federation.clients) == ["0", "1", "2"]
    assert federation.request == local.request
    assert federation.cost == local.cost, "to ask who they are costs nothing"


def test_training_rounds_give_the_same_bits_and_the_same_costs() -> None:
    case = trained()
    federation, local = behind_flower(case), case.federation()
    model = {"model": case.history.current()}
    for clients in (None, ["2", "0"], []):
        settings = train_settings(case.history.training, "retained", 6, lr=0.03)
        one, other = (f.ask("train", model, settings, clients) for f in (federation, local))
        assert list(one) == list(other) == (["0", "1", "2"] if clients is None else clients)
        for name, answer in one.items():
            assert (answer.samples, answer.numbers) == (other[name].samples, other[name].numbers)
            assert equal(answer.tensors["model"], other[name].tensors["model"])
            assert answer.seconds > 0
    assert federation.cost.client_seconds > 0
    assert replace(federation.cost, client_seconds=0) == replace(local.cost, client_seconds=0)
    size = sum(t.numel() * t.element_size() for t in model["model"].values())
    assert (federation.cost.rounds, federation.cost.bytes_down, federation.cost.bytes_up) == (
        3,
        5 * size,
        5 * size,
    )


def test_what_a_task_is_sent_and_answers_arrives_as_it_is(known: Callable) -> None:
    seen = []

    def echo(client: Client, tensors: Tensors, settings: Settings) -> Answer:
        seen.append((tensors, dict(settings)))
        return Answer(4, tensors, {"nats": 0.1 + 0.2, "many": 12345678901.0}, {"why": "because\n"})

    known("echo", echo)
    case = trained()
    tensors = {
        "model": {
            "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
            "double": torch.rand(3, 2, dtype=torch.float64).T,
            "half": torch.rand(2).half(),
            "flags": torch.tensor([True, False]),
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 3),
        },
        "teacher": {"w": torch.zeros(2, 2)},
        "nothing": {},
    }
    settings = {"a": 1, "b": 0.1, "c": "x", "d": True, "e": ["u", "v"], "f": [1, 2], "g": (0.5, 1.5), "h": []}
    federation, local = behind_flower(case), case.federation()
    answers, others = (f.ask("echo", tensors, settings) for f in (federation, local))
    assert seen[0][1] == {**settings, "g": [0.5, 1.5]}
    for name, answer in answers.items():
        assert (answer.samples, answer.numbers, answer.notes) == (
            others[name].samples,
            others[name].numbers,
            others[name].notes,
        )
        for got in (answer.tensors, seen[0][0]):
            assert {k: list(v) for k, v in got.items()} == {k: list(v) for k, v in tensors.items()}
            for key, state in tensors.items():
                for n, t in state.items():
                    torch.testing.assert_close(got[key][n], t, rtol=0, atol=0, equal_nan=True)
            assert torch.signbit(got["model"]["nan"][1])
    assert federation.cost.bytes_down == local.cost.bytes_down
    assert federation.cost.bytes_up == local.cost.bytes_up


@pytest.mark.parametrize(
    ("tensors", "settings", "what"),
    [
        ({}, {"rows": [1, 0.5]}, "'rows' is"),
        ({}, {"rows": None}, "'rows' is None"),
        ({"model": {"w": torch.zeros(2, dtype=torch.bfloat16)}}, {}, "the tensors 'model' do not fit"),
    ],
)
def test_what_no_message_can_hold_is_said_before_it_is_sent(tensors, settings, what: str) -> None:
    federation = behind_flower(trained())
    with pytest.raises(StrategyError, match=f"task 'train'.*{what}"):
        federation.ask("train", tensors, settings)
    assert federation.cost.rounds == 0


def test_an_answer_that_no_message_can_hold_is_a_clients_failure(known: Callable) -> None:
    wrong = {"model": {"w": torch.zeros(2, dtype=torch.bfloat16)}}
    known("wrong", lambda client, tensors, settings: Answer(1, wrong))
    with pytest.raises(
        StrategyError, match="client 0 failed at 'wrong': StrategyError: the answer of client 0"
    ):
        behind_flower(trained()).ask("wrong")


@pytest.mark.parametrize("error", [StrategyError, MeasureError, ValueError, OSError, KeyError])
def test_a_client_that_cannot_do_it_is_named_with_its_reason(known: Callable, error: type) -> None:
    def fail(client: Client, tensors: Tensors, settings: Settings) -> Answer:
        if client.name != "0":
            raise error(f"too few samples at {client.name}")
        return Answer(1)

    known("fail", fail)
    federation = behind_flower(trained())
    with pytest.raises(
        StrategyError, match=f"client 1 failed at 'fail': {error.__name__}.*too few samples at 1"
    ):
        federation.ask("fail")
    assert federation.ask("fail", clients=["0"])["0"].samples == 1
    assert federation.cost.rounds == 1, "a question that failed is in no cost, as in one process"


def test_unknown_tasks_and_clients_are_refused() -> None:
    federation = behind_flower(trained())
    with pytest.raises(
        StrategyError, match="client 0 failed at 'tarin': StrategyError: unknown task 'tarin'"
    ):
        federation.ask("tarin")
    with pytest.raises(StrategyError, match="there is no client '7': they are 0, 1, 2"):
        federation.ask("train", clients=["7"])


def test_a_client_that_does_not_answer_in_time_is_named() -> None:
    federation = behind_flower(trained())
    federation._grid.away.add(900 - 1)
    with pytest.raises(StrategyError, match=r"client 1 failed at 'identify': no answer within 7 s"):
        federation.ask("identify")


def test_a_client_that_is_another_one_suddenly_is_an_error() -> None:
    federation = behind_flower(trained())
    contexts = federation._grid.contexts
    contexts[900], contexts[899] = contexts[899], contexts[900]
    with pytest.raises(StrategyError, match="asked the clients 0, 1, they answer as 1, 0"):
        federation.ask("identify", clients=["0", "1"])


def test_nonsense_for_an_answer_is_an_error() -> None:
    def tampered(change: Callable[[RecordDict], None]) -> FlowerFederation:
        def tamper(request: Message, reply: Message) -> Message:
            if messages.read_task(request.content)[0] == "train":
                change(reply.content)
            return reply

        return behind_flower(trained(), tamper)

    def samples(content: RecordDict) -> None:
        content[records.HEAD]["samples"] = -1

    def number(content: RecordDict) -> None:
        content[messages.NUMBERS]["loss"] = "low"

    def headless(content: RecordDict) -> None:
        del content[records.HEAD]

    settings = train_settings(trained().history.training, "train", 1)
    for change, what in (
        (samples, "about -1 samples"),
        (number, "'loss' must be a number"),
        (headless, "record"),
    ):
        with pytest.raises(StrategyError, match=f"client 0 failed at 'train'.*{what}"):
            tampered(change).ask("train", {"model": trained().history.current()}, settings)


def test_clients_that_are_not_those_of_the_setting_are_refused() -> None:
    case = trained()
    with pytest.raises(StrategyError, match=r"the run has 2 nodes, the setting 3 clients.*num-supernodes=3"):
        FlowerFederation(connected(nodes=2), case.federation().request)
    with pytest.raises(StrategyError, match="nobody to ask"):
        FlowerFederation(LocalGrid({}), case.federation().request)
    other = trained(forget_classes="1,9").federation().request
    with pytest.raises(StrategyError, match=r"client 0 is to forget .*\[3\].*, the server .*\[1, 9\]"):
        FlowerFederation(connected(), other)
    twins = connected()
    twins.contexts[899] = twins.contexts[900]
    with pytest.raises(StrategyError, match="two nodes answer as client '0'"):
        FlowerFederation(twins, case.federation().request)


def test_flowers_average_is_that_of_one_process_but_for_float32(own: History) -> None:
    case = trained()
    assert own.rounds == case.history.rounds
    assert own.has_updates
    assert equal(own.initial(), case.history.initial())
    for name, (state, samples) in own.updates(1).items():
        theirs, number = case.history.updates(1)[name]
        assert equal(state, theirs), "from the same model, each client trains to the same bits"
        assert samples == number
    for number in own.rounds:
        exact = average(own.updates(number))
        for name, tensor in own.global_model(number).items():
            torch.testing.assert_close(tensor, exact[name], rtol=1e-6, atol=1e-7)


def test_a_model_trained_by_flower_is_as_good_as_one_trained_in_one_process(own: History) -> None:
    """Rounding grows from round to round: after these five, single weights differ by up to 0.035."""
    case = trained()
    for part in ("forget", "retained", "held-out"):
        accuracies = [case.accuracy(h.current(), part) for h in (own, case.history)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_a_strategy_makes_the_same_model_on_both_engines_from_the_same_state(name: str) -> None:
    strategy = strategies.get(name)
    case = trained() if "classes" in strategy.targets else trained("digits-client")
    federation = behind_flower(case)
    assert strategy.problem(federation, case.history) is None
    outcome = strategy.unlearn(federation, case.history)
    local = case.federation()
    other = strategy.unlearn(local, case.history)
    assert equal(outcome.state, other.state)
    assert outcome.facts == other.facts
    assert replace(federation.cost, client_seconds=0) == replace(local.cost, client_seconds=0)
    measured = [
        measure_all(f, outcome.state, case.history.current(), ["accuracy"]) for f in (federation, local)
    ]
    assert measured[0] == measured[1]


def test_retraining_does_not_depend_on_who_trained(own: History) -> None:
    case = trained()
    outcome = strategies.get("retrain").unlearn(behind_flower(case), own)
    assert equal(outcome.state, strategies.get("retrain").unlearn(case.federation(), case.history).state)


def test_a_client_that_is_missing_from_a_round_ends_the_comparison(tmp_path: Path) -> None:
    def tamper(request: Message, reply: Message) -> Message | None:
        late = request.metadata.message_type == "train" and request.metadata.dst_node_id == 899
        return None if late else reply

    with (
        open_store(trained().setting, 0, tmp_path) as store,
        pytest.raises(StrategyError, match="round 1 of training has the updates of 2 of 3 clients"),
    ):
        train(connected(tamper), trained().setting, 0, store)
