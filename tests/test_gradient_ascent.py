"""Projected gradient ascent: the ball, when it stops, what it forgets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_strategies import reference_projected
from strategy_cases import trained
from torch.nn.utils import parameters_to_vector

import strategies
from strategies.errors import StrategyError
from strategies.gradient_ascent import projected
from strategies.tasks import run
from strategies.training import seed_of

POINTS = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=8)
SETTINGS = {
    "radius": 1 / 3,
    "random-models": 3,
    "distance": 100.0,
    "epochs": 5,
    "batch-size": 32,
    "lr": 0.01,
    "momentum": 0.9,
    "clip": 5.0,
    "seed": 0,
}


@settings(deadline=None)
@given(POINTS, st.floats(1e-3, 80))
def test_a_point_is_projected_onto_the_ball(pairs, radius) -> None:
    point, centre = ([p[i] for p in pairs] for i in (0, 1))
    found = projected(torch.tensor(point).double(), torch.tensor(centre).double(), radius)
    wanted = reference_projected(
        torch.tensor(point).double().tolist(), torch.tensor(centre).double().tolist(), radius
    )
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def vector(client, state):
    return parameters_to_vector(client.model(state).parameters()).detach()


def ascend(client, state, **changes):
    tensors = {"model": state, "reference": state, "own": state}
    return run("gradient-ascent.ascend", client, tensors, {**SETTINGS, **changes})


def test_the_ball_is_a_third_of_the_way_to_random_models() -> None:
    case = trained()
    client, state = case.clients[0], case.history.current()
    centre = vector(client, state)
    distances = [
        math.dist(parameters_to_vector(client.fresh(seed_of(0, k, 0)).parameters()).tolist(), centre.tolist())
        for k in range(3)
    ]
    assert ascend(client, state).numbers["radius"] == pytest.approx(sum(distances) / 9, rel=1e-5)
    assert ascend(case.clients[1], state).numbers["radius"] == ascend(client, state).numbers["radius"]


def test_the_model_stays_in_the_ball() -> None:
    case = trained()
    client, state = case.clients[0], case.history.current()
    answer = ascend(client, state, radius=0.01, lr=0.1, epochs=20)
    moved = (vector(client, answer.tensors["model"]) - vector(client, state)).norm()
    # Momentum drives it against the border, so it ends there.
    assert float(moved) == pytest.approx(answer.numbers["radius"], rel=1e-3)


def test_it_stops_when_far_from_the_clients_own_model() -> None:
    case = trained()
    client, state = case.clients[0], case.history.current()
    full = ascend(client, state, epochs=20)
    cut = ascend(client, state, epochs=20, distance=0.5)
    before = ascend(client, state, epochs=20, distance=1000.0)
    assert cut.numbers["steps"] < full.numbers["steps"] == before.numbers["steps"]
    assert 0.5 < cut.numbers["distance"] < full.numbers["distance"]
    far = {n: t + 1 for n, t in state.items()}
    tensors = {"model": far, "reference": state, "own": state}
    assert run("gradient-ascent.ascend", client, tensors, SETTINGS | {"distance": 0.5}).numbers["steps"] == 0


def test_ascent_alone_drives_the_class_out() -> None:
    case = trained()
    federation = case.federation()
    outcome = strategies.get("gradient-ascent", rounds=0).unlearn(federation, case.history)
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < 0.1
    assert federation.cost.rounds == 3  # one holder after another


def test_a_client_is_forgotten_and_its_backdoor_with_it() -> None:
    case = trained("digits-client", alpha=1.0)
    current = case.history.current()
    outcome = strategies.get("gradient-ascent").unlearn(case.federation(), case.history)
    again = strategies.get("gradient-ascent").unlearn(case.federation(), case.history)
    assert all(torch.equal(t, again.state[n]) for n, t in outcome.state.items())
    assert case.accuracy(outcome.state, "triggered") < case.accuracy(current, "triggered") / 2
    assert case.accuracy(outcome.state, "retained") > 0.8


def test_ascent_starts_from_the_mean_of_the_others() -> None:
    case = trained("digits-client", alpha=1.0)
    sent = {}
    federation = case.federation()
    ask = federation.ask

    def watched(task, tensors=None, settings=None, clients=None):
        sent.setdefault(task, (tensors, clients))
        return ask(task, tensors, settings, clients)

    federation.ask = watched
    strategies.get("gradient-ascent", rounds=1).unlearn(federation, case.history)
    tensors, clients = sent["gradient-ascent.ascend"]
    assert clients == ["0"]
    last = case.history.updates(5)
    total = sum(count for _, count in last.values())
    own, count = last["0"]
    for name, tensor in case.history.current().items():  # the paper's formula, weighted
        wanted = (total * tensor - count * own[name]) / (total - count)
        torch.testing.assert_close(tensors["reference"][name], wanted, rtol=1e-3, atol=1e-4)


def test_it_forgets_samples_too() -> None:
    case = trained(forget_classes="", forget_samples="0:40")
    outcome = strategies.get("gradient-ascent", rounds=0).unlearn(case.federation(), case.history)
    assert case.accuracy(outcome.state, "forget") < case.accuracy(case.history.current(), "forget") - 0.2


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"distance": -1.0}, {"epochs": 0}, {"momentum": 1.0}])
def test_bad_hyper_parameters_are_refused(bad) -> None:
    with pytest.raises(StrategyError, match=next(iter(bad))):
        strategies.get("gradient-ascent", **bad)
