"""FedEraser: new directions, stored lengths, and nobody who is to be forgotten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_strategies import reference_calibrated
from strategy_cases import trained
from torch import nn
from torch.utils.data import TensorDataset

import strategies
from fl_unlearn.types import ForgetRequest
from strategies.client import Client
from strategies.errors import StrategyError, UnsupportedError
from strategies.federaser import calibrated
from strategies.history import Training
from strategies.tasks import run
from strategies.training import train_settings

VALUES = st.lists(st.floats(-100, 100).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=12)


@settings(deadline=None)
@given(VALUES, st.randoms())
def test_an_update_keeps_its_direction_and_gets_the_stored_length(values, random) -> None:
    stored = [v * random.uniform(-2, 2) for v in values]
    as_tensors = {"w": torch.tensor(values, dtype=torch.float64)}, {"w": torch.tensor(stored).double()}
    found = calibrated(*as_tensors)["w"]
    wanted = reference_calibrated(values, as_tensors[1]["w"].tolist())
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_each_tensor_has_a_length_of_its_own() -> None:
    update = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 2.0]), "still": torch.zeros(2)}
    stored = {"a": torch.tensor([0.0, 10.0]), "b": torch.tensor([1.0, 0.0]), "still": torch.ones(2)}
    out = calibrated(update, stored)
    torch.testing.assert_close(out["a"], torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(out["b"], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(out["still"], torch.zeros(2))


def test_it_does_not_know_the_class() -> None:
    case = trained()
    federation = case.federation()
    outcome = strategies.get("federaser", interval=1).unlearn(federation, case.history)
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") == 0
    assert case.accuracy(outcome.state, "retained") > 0.8
    assert outcome.facts == {"rounds": 5, "epochs": 1}
    assert federation.cost.rounds == 5


def test_stored_updates_of_the_first_round_are_used_as_they_are() -> None:
    # With no round but the first to replay, and one holder: three stored updates, one calibrated.
    case = trained("digits-client", alpha=1.0)
    federation = case.federation()
    outcome = strategies.get("federaser", interval=9).unlearn(federation, case.history)
    assert federation.cost.rounds == 0
    kept = {c: update for c, update in case.history.updates(1).items() if c != "0"}
    total = sum(count for _, count in kept.values())
    for name, tensor in outcome.state.items():
        mean = sum(model[name] * (count / total) for model, count in kept.values())
        torch.testing.assert_close(tensor, mean)


def test_a_forgotten_client_is_left_out() -> None:
    case = trained("digits-client", alpha=1.0)
    asked = set()
    federation = case.federation()
    ask = federation.ask

    def watched(task, tensors=None, settings=None, clients=None):
        asked.update(clients)
        return ask(task, tensors, settings, clients)

    federation.ask = watched
    outcome = strategies.get("federaser").unlearn(federation, case.history)
    assert asked == {"1", "2"}
    assert case.accuracy(case.history.current(), "triggered") > 0.5
    assert case.accuracy(outcome.state, "triggered") < 0.1


def test_samples_are_forgotten_by_calibrating_on_the_rest() -> None:
    case = trained(forget_classes="", forget_samples="0:40")
    outcome = strategies.get("federaser").unlearn(case.federation(), case.history)
    again = strategies.get("federaser").unlearn(case.federation(), case.history)
    assert case.accuracy(outcome.state, "held-out") > 0.7
    assert all(torch.equal(t, again.state[n]) for n, t in outcome.state.items())


def test_buffers_are_not_taken_for_parameters() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    data = TensorDataset(torch.randn(8, 3), torch.tensor([0, 1] * 4))
    client = Client("0", 0, build, data, data, ForgetRequest(samples={"0": (1,)}))
    state = client.fresh(0).state_dict()
    training = Training(rounds=1, batch_size=4)
    settings = train_settings(training, "retained", 1)
    calibrated_answer = run("federaser.calibrate", client, {"model": state}, settings)
    trained_answer = run("train", client, {"model": state}, settings)
    assert calibrated_answer.samples == 7
    buffers, update = (calibrated_answer.tensors[n] for n in ("buffers", "update"))
    assert set(buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, tensor in trained_answer.tensors["model"].items():
        found = buffers[name] if name in buffers else state[name] + update[name]
        torch.testing.assert_close(found, tensor)


@pytest.mark.parametrize(
    ("bad", "what"), [({"interval": 0}, "interval must be at least 1, got 0"), ({"ratio": 1.5}, "got 1.5")]
)
def test_bad_hyper_parameters_are_refused(bad, what) -> None:
    with pytest.raises(StrategyError, match=what):
        strategies.get("federaser", **bad)


def test_without_the_clients_updates_it_says_what_it_needs() -> None:
    case = trained()

    class Thin:
        has_updates = False

    with pytest.raises(UnsupportedError, match="keep-client-updates"):
        strategies.get("federaser").check(case.federation(), Thin())
