"""What every strategy has in common: the registry, the contract, the yardsticks."""

from __future__ import annotations

import pytest
import torch
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError, UnsupportedError
from strategies.training import average


def test_a_name_that_is_not_known_is_answered_with_the_nearest() -> None:
    with pytest.raises(StrategyError, match="did you mean 'retrain'"):
        strategies.get("retrian")


def test_a_hyper_parameter_that_is_not_known_is_an_error() -> None:
    with pytest.raises(StrategyError, match="fine-tune"):
        strategies.get("fine-tune", steps=3)


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_each_strategy_says_what_it_is(name: str) -> None:
    strategy = strategies.get(name)
    assert strategy.name == name
    assert strategy.paper
    assert strategy.targets


def test_retraining_is_deterministic() -> None:
    case = trained(forget_classes="", forget_samples="0:1", backdoor_client="")
    again = strategies.get("retrain").unlearn(case.federation(), case.history)
    other = strategies.get("retrain").unlearn(case.federation(), case.history)
    for name, tensor in again.state.items():
        torch.testing.assert_close(tensor, other.state[name], rtol=0, atol=0)
    assert case.accuracy(again.state, "held-out") > 0.8


def test_a_retrained_model_does_not_know_the_class() -> None:
    case = trained()
    outcome = strategies.get("retrain").unlearn(case.federation(), case.history)
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") == 0
    assert case.accuracy(outcome.state, "retained") > 0.9


def test_the_mask_hides_the_class_and_changes_nothing_else() -> None:
    case = trained()
    federation = case.federation()
    outcome = strategies.get("mask").unlearn(federation, case.history)
    assert case.accuracy(outcome.state, "forget") == 0
    assert case.accuracy(outcome.state, "retained") >= case.accuracy(case.history.current(), "retained")
    assert federation.cost.rounds == 0
    changed = {n for n, t in outcome.state.items() if not torch.equal(t, case.history.current()[n])}
    assert changed == {"head.weight", "head.bias"}


def test_a_mask_cannot_forget_a_client() -> None:
    case = trained("digits-client")
    with pytest.raises(UnsupportedError, match="mask: it cannot forget a client, only classes"):
        strategies.get("mask").check(case.federation(), case.history)


def test_a_mean_that_is_not_finite_names_who_diverged() -> None:
    models = {"a": ({"w": torch.ones(2)}, 1.0), "b": ({"w": torch.tensor([1.0, torch.nan])}, 3.0)}
    with pytest.raises(StrategyError, match=r"^at b: .*'w' are not finite: training diverged; lower"):
        average(models)
    with pytest.raises(StrategyError, match="no client had a sample"):
        average({})
