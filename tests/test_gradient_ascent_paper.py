"""Gradient ascent as in the reference code: until the class is gone, then the same difference everywhere."""

from __future__ import annotations

import pytest
import torch
from references_strategies import reference_gradient
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError
from strategies.tasks import run


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    case = trained()
    client, state = case.clients[1], case.history.initial()
    answer = run("gradient-ascent-paper.gradient", client, {"model": state}, {})
    samples = [(x, int(y)) for x, y in client.dataset("forget")]
    wanted = reference_gradient(client.model(state), samples)
    assert answer.samples == len(samples) > 1
    assert set(answer.tensors["gradient"]) == set(wanted)
    for name, tensor in answer.tensors["gradient"].items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-4, atol=1e-6)
    model = client.model(state)
    right = sum(int(model(x[None]).argmax()) == y for x, y in samples)
    assert answer.numbers["accuracy"] == pytest.approx(right / len(samples))


def test_one_step_is_full_batch_ascent_over_all_holders() -> None:
    case = trained()
    state = case.history.current()
    outcome = strategies.get("gradient-ascent-paper", steps=1, lr=0.5).unlearn(
        case.federation(), case.history
    )
    samples = [(x, int(y)) for c in case.clients for x, y in c.dataset("forget")]
    gradient = reference_gradient(case.clients[0].model(state), samples)
    for name, tensor in outcome.state.items():
        wanted = state[name].double() + 0.5 * gradient[name]
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-4, atol=1e-6)


def test_it_ends_as_soon_as_the_class_is_gone() -> None:
    case = trained()
    outcome = strategies.get("gradient-ascent-paper").unlearn(case.federation(), case.history)
    steps = outcome.facts["steps"]
    assert 1 < steps < 100
    reached = case.accuracy(outcome.state, "forget")
    assert outcome.facts["forget-accuracy"] == pytest.approx(reached)
    assert reached < 0.2
    before = strategies.get("gradient-ascent-paper", steps=steps - 1).unlearn(case.federation(), case.history)
    assert before.facts["forget-accuracy"] >= 0.2


def test_other_models_get_the_same_difference() -> None:
    case = trained()
    current, other = case.history.current(), case.history.global_model(2)
    outcome = strategies.get("gradient-ascent-paper").unlearn(case.federation(), case.history)
    assert outcome.change is not None
    for name, tensor in outcome.change(other).items():
        torch.testing.assert_close(tensor - other[name], outcome.state[name] - current[name])


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"accuracy": 0.0}, {"steps": 0}])
def test_bad_hyper_parameters_are_refused(bad) -> None:
    with pytest.raises(StrategyError, match=next(iter(bad))):
        strategies.get("gradient-ascent-paper", **bad)
