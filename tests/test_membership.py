"""Membership inference, compared with pair counting and on cases whose answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_probes import auc_by_pairs, loss_and_entropy, tpr_by_thresholds
from torch import nn

from fl_unlearn.membership import membership_inference, threshold_attack
from fl_unlearn.types import MeasureError

numbers = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.1, 3.0, float("inf"), float("-inf")]), min_size=1)


@given(numbers, numbers, st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_attack_is_what_counting_gives(members: list[float], others: list[float], fpr: float) -> None:
    others = others * 10
    attack = threshold_attack(torch.tensor(members), torch.tensor(others), fpr=fpr)
    assert attack.auc == pytest.approx(auc_by_pairs(members, others), abs=1e-12)
    assert attack.tpr == pytest.approx(tpr_by_thresholds(members, others, fpr), abs=1e-12)
    assert (attack.fpr, attack.members, attack.non_members) == (fpr, len(members), len(others))


def test_attack_on_random_numbers_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(150, generator=generator, dtype=torch.float64) + 1
    b = torch.randn(230, generator=generator, dtype=torch.float64)
    attack = threshold_attack(a, b)
    assert attack.auc == pytest.approx(auc_by_pairs(a.tolist(), b.tolist()), abs=1e-12)
    assert attack.tpr == tpr_by_thresholds(a.tolist(), b.tolist(), 0.01)


def test_attack_on_known_cases() -> None:
    low, high = torch.arange(100.0), torch.arange(100.0) + 100
    assert (threshold_attack(high, low).auc, threshold_attack(high, low).tpr) == (1.0, 1.0)
    assert (threshold_attack(low, high).auc, threshold_attack(low, high).tpr) == (0.0, 0.0)
    assert threshold_attack(low, low).auc == 0.5
    assert threshold_attack(low, low).tpr == 0.01, "one member lies above the second non-member"
    assert threshold_attack(torch.zeros(3), torch.zeros(100)).tpr == 0.0, "ties cannot be told apart"


@pytest.mark.parametrize(
    ("members", "others", "fpr", "says"),
    [
        (5, 99, 0.01, "0.01 needs at least 100 non-members and one member, got 99 and 5"),
        (0, 100, 0.01, "got 100 and 0"),
        (5, 2, 1 / 3, "at least 3 non-members"),
        (5, 5, 0.0, r"fpr must lie in \(0, 1\], got 0.0"),
        (5, 5, 1.5, "fpr must lie"),
    ],
)
def test_attack_refuses_too_few_samples(members: int, others: int, fpr: float, says: str) -> None:
    with pytest.raises(MeasureError, match=says):
        threshold_attack(torch.zeros(members), torch.zeros(others), fpr=fpr)


def test_attack_refuses_numbers_that_are_none() -> None:
    with pytest.raises(MeasureError, match="NaN"):
        threshold_attack(torch.tensor([torch.nan]), torch.zeros(100))


# --------------------------------------------------------------------------- on a model
def test_loss_and_entropy_of_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    x, y = torch.randn(40, 5) * 3, torch.randint(4, (40,))
    found = membership_inference(model, [(x[:25], y[:25])], [(x[25:30], y[25:30]), (x[30:], y[30:])], fpr=0.1)
    assert model.training
    for name, values in zip(("loss", "entropy"), loss_and_entropy(model, x, y), strict=True):
        numbers = [-v for v in values]
        assert found[name].auc == pytest.approx(auc_by_pairs(numbers[:25], numbers[25:]))
        assert found[name].tpr == pytest.approx(tpr_by_thresholds(numbers[:25], numbers[25:], 0.1))


def test_a_model_that_learned_its_members_by_heart_betrays_them() -> None:
    x, y = torch.eye(200), torch.arange(200) % 2
    model = nn.Sequential(nn.Linear(200, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[y[:100], torch.arange(100)] = 3.0
    for attack in membership_inference(model, [(x[:100], y[:100])], [(x[100:], y[100:])]).values():
        assert (attack.auc, attack.tpr) == (1.0, 1.0)


def test_members_and_others_of_one_distribution_are_not_told_apart() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(4000, 5)
    y = torch.randint(3, (4000,))
    for attack in membership_inference(model, [(x[:2000], y[:2000])], [(x[2000:], y[2000:])]).values():
        assert attack.auc == pytest.approx(0.5, abs=0.03)
        assert attack.tpr == pytest.approx(0.01, abs=0.015)


def test_a_class_whose_logit_is_masked_is_measured_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -1e4
    x, y = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.full((200,), 2)
    found = membership_inference(model, [(x[:100], y[:100])], [(x[100:], y[100:])])
    assert all(0 <= a.auc <= 1 for a in found.values())


def test_what_cannot_be_measured_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    batch = (torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 0]))
    with pytest.raises(MeasureError, match="got 5 and 5"):
        membership_inference(model, [batch], [batch])
    with pytest.raises(MeasureError, match="got 5 and 0"):
        membership_inference(model, [], [batch], fpr=0.2)
