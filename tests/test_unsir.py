"""UNSIR on a small federation."""

from __future__ import annotations

import pytest
import torch
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError, UnsupportedError
from strategies.unsir import Unsir


def test_the_class_is_forgotten_and_the_rest_repaired() -> None:
    case = trained()
    federation = case.federation()
    strategy = strategies.get("unsir")
    outcome = strategy.unlearn(federation, case.history)
    assert federation.cost.rounds == 3
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < 0.2
    assert case.accuracy(outcome.state, "retained") > 0.9


def test_repair_wins_back_what_impairing_costs() -> None:
    case = trained()
    strategy = Unsir(impair_lr=0.02)
    impaired = strategy.impair(case.federation(), case.history)
    repaired = strategy.repair(case.federation(), case.history, impaired)
    assert case.accuracy(repaired, "retained") > case.accuracy(impaired, "retained") + 0.05


def test_several_classes_are_impaired_together() -> None:
    case = trained("digits-classes")
    outcome = strategies.get("unsir").unlearn(case.federation(), case.history)
    assert case.accuracy(outcome.state, "forget") < 0.3
    assert case.accuracy(outcome.state, "retained") > 0.8


def test_the_same_seed_gives_the_same_model() -> None:
    case = trained()
    one, two = (strategies.get("unsir").unlearn(case.federation(), case.history).state for _ in range(2))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("digits-client", {}, "it cannot forget a client, only classes"),
        ("digits-class", {"forget_classes": "", "forget_samples": "0:5"}, "it cannot forget single samples"),
        ("digits-class", {"forget_clients": "1"}, "impairs a class at every client"),
    ],
)
def test_what_is_no_class_of_everybody_is_refused(name: str, changes: dict[str, str], why: str) -> None:
    case = trained(name, **changes)
    with pytest.raises(UnsupportedError, match=f"unsir: .*{why}"):
        strategies.get("unsir").check(case.federation(), case.history)


def test_wrong_hyper_parameters_are_refused() -> None:
    with pytest.raises(StrategyError, match=r"unsir: impair_lr must be above 0, got -0\.1"):
        strategies.get("unsir", impair_lr=-0.1)
