"""Distillation into a fresh student."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_cross_entropy, reference_divergence
from strategy_cases import trained

import strategies
from strategies.distill import distillation
from strategies.errors import StrategyError


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 6))
def test_the_loss_weighs_teacher_and_labels(seed: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, teacher = torch.randn(2, samples, 4, generator=generator, dtype=torch.float64) * 3
    y = torch.randint(4, (samples,), generator=generator)
    temperature, alpha = 2.0, 0.8
    p = (teacher / temperature).softmax(1)
    soft = temperature**2 * reference_divergence(z, p, temperature)
    expected = alpha * soft + (1 - alpha) * reference_cross_entropy(z, y)
    assert distillation(z, p, y, temperature, alpha).item() == pytest.approx(expected)


def test_the_student_knows_what_is_kept_and_not_the_class() -> None:
    case = trained()
    federation = case.federation()
    outcome = strategies.get("distill", rounds=4).unlearn(federation, case.history)
    assert case.accuracy(outcome.state, "forget") < 0.05
    assert case.accuracy(outcome.state, "retained") > 0.85
    assert federation.cost.rounds == 4


def test_the_teacher_matters() -> None:
    case = trained()
    one, two = (
        strategies.get("distill", rounds=1, alpha=alpha).unlearn(case.federation(), case.history).state
        for alpha in (1e-6, 1.0)
    )
    assert not torch.equal(one["head.weight"], two["head.weight"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [("digits-client", {}), ("digits-class", {"forget_classes": "", "forget_samples": "0:9"})],
)
def test_clients_and_samples_too(name: str, changes: dict[str, str]) -> None:
    case = trained(name, **changes)
    strategy = strategies.get("distill", rounds=2)
    strategy.check(case.federation(), case.history)
    one, two = (strategy.unlearn(case.federation(), case.history).state for _ in range(2))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, two[key], rtol=0, atol=0)
    assert case.accuracy(one, "held-out") > 0.3


def test_wrong_hyper_parameters_are_refused() -> None:
    with pytest.raises(StrategyError, match=r"distill: alpha must be above 0, at most 1, got 1\.5"):
        strategies.get("distill", alpha=1.5)
    with pytest.raises(StrategyError, match="distill: temperature must be above 0, got 0"):
        strategies.get("distill", temperature=0)
