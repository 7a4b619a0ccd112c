"""U-LiRA: the fits and the ratio against plain loops, distributions whose answer is known, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_metrics import logit
from references_metrics import u_lira as reference

from fl_unlearn.metrics.ulira import logit_scaled, u_lira
from fl_unlearn.types import MeasureError


def normal(shadows: int, samples: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + spread * torch.randn(shadows, samples, generator=generator, dtype=torch.float64)


@given(st.lists(st.floats(-15, 15), min_size=2, max_size=6), st.integers(0, 5))
def test_confidence_is_the_log_odds(logits: list[float], label: int) -> None:
    label %= len(logits)
    found = logit_scaled(torch.tensor([logits], dtype=torch.float64), torch.tensor([label]))
    assert found.item() == pytest.approx(logit(logits, label), abs=1e-9)


def test_confidence_is_finite_where_the_probability_is_0_or_1() -> None:
    z = torch.tensor([[1e4, 0.0, 0.0], [1e4, 0.0, 0.0]])
    found = logit_scaled(z, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([1e4 - math.log(2), -1e4])


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_plain_loops_give(seed: int, pooled: bool) -> None:
    a, b = normal(4 + seed, 9, seed, 0.8, 1.5), normal(4 + seed, 9, seed + 50)
    found = u_lira(a, b, fpr=0.1, pooled=pooled)
    expected = reference(a.tolist(), b.tolist(), 0.1, pooled)
    assert (found.accuracy, found.auc, found.tpr) == pytest.approx(expected, abs=1e-9)
    assert (found.fpr, found.shadows, found.samples) == (0.1, 4 + seed, 9)


def test_few_shadows_share_their_variance() -> None:
    a, b = normal(5, 40, 0, 1.0), normal(5, 40, 1)
    assert u_lira(a, b) == u_lira(a, b, pooled=True) != u_lira(a, b, pooled=False)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_gaussians_are_told_apart_as_well_as_can_be(shift: float) -> None:
    # The best accuracy for N(shift, 1) against N(0, 1) is Phi(shift / 2), the best AUC Phi(shift / sqrt 2).
    found = u_lira(normal(100, 150, 0, shift), normal(100, 150, 1), pooled=True)
    cumulative = torch.special.ndtr(torch.tensor([shift / 2, shift / math.sqrt(2)])).tolist()
    assert [found.accuracy, found.auc] == pytest.approx(cumulative, abs=0.02)


def test_models_that_differ_in_spread_alone_are_told_apart() -> None:
    assert u_lira(normal(30, 200, 0, spread=4.0), normal(30, 200, 1)).auc > 0.75


def test_what_is_exchangeable_is_guessed_also_with_few_shadows() -> None:
    found = [u_lira(normal(4, 60, 2 * s), normal(4, 60, 2 * s + 1)) for s in range(40)]
    assert sum(f.auc for f in found) / 40 == pytest.approx(0.5, abs=0.01)
    assert sum(f.accuracy for f in found) / 40 == pytest.approx(0.5, abs=0.01)


def test_identical_models_are_guessed() -> None:
    same = torch.full((4, 50), 3.0)
    found = u_lira(same, same)
    assert (found.accuracy, found.auc, found.tpr) == (0.5, 0.5, 0.0)


def test_a_sample_that_is_always_recognised() -> None:
    found = u_lira(normal(4, 50, 0, 100.0), normal(4, 50, 1))
    assert (found.accuracy, found.auc, found.tpr) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (torch.zeros(3, 50), torch.zeros(3, 50), "at least 4 shadow models a side, got 3"),
        (torch.zeros(4, 50), torch.zeros(5, 50), r"got \[4, 50\] and \[5, 50\]"),
        (torch.zeros(50), torch.zeros(50), "needs? the shape"),
        (torch.zeros(4, 24), torch.zeros(4, 24), "at least 100 non-members"),
        (torch.full((4, 50), torch.nan), torch.zeros(4, 50), "must be finite"),
    ],
)
def test_refusals(a: torch.Tensor, b: torch.Tensor, says: str) -> None:
    with pytest.raises(MeasureError, match=says):
        u_lira(a, b)
