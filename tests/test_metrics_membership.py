"""Membership inference as a metric: like is compared with like, and what cannot be said is not."""

from __future__ import annotations

import pytest
import torch
from metric_cases import batches, constant, net, rows, subject
from references_metrics import attack_by_label
from torch import nn

from fl_unlearn.metrics import membership
from fl_unlearn.metrics.contract import combine, measure


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labels", [(1,), (0, 2, 2, 2), (0, 1, 2, 3)])
def test_auc_is_what_counting_pairs_of_one_label_gives(seed: int, labels: tuple[int, ...]) -> None:
    inside, outside = rows(20, seed, labels), rows(40, seed + 100)
    found = membership.AUC.measure(
        subject(model=net(seed), forget=batches(inside), held_out=batches(outside))
    )
    expected = attack_by_label(net(seed), inside, outside, "auc", 1)
    assert {k: n.value for k, n in found.items()} == pytest.approx(expected, abs=1e-12)
    assert {n.samples for n in found.values()} == {20}


@pytest.mark.parametrize("seed", range(3))
def test_tpr_is_what_thresholds_of_one_label_give(seed: int) -> None:
    inside, outside = rows(50, seed, (0, 1)), rows(260, seed + 100, (0, 1, 1, 2))
    enough = int((outside[1] == 1).sum()) >= 100 > int((outside[1] == 0).sum())
    assert enough, "the case should have one label with too few held-out samples"
    found = membership.TPR.measure(
        subject(model=net(seed), forget=batches(inside), held_out=batches(outside))
    )
    expected = attack_by_label(net(seed), inside, outside, "tpr", 100)
    assert {k: n.value for k, n in found.items()} == pytest.approx(expected, abs=1e-12)
    assert {n.samples for n in found.values()} == {int((inside[1] == 1).sum())}


def test_a_class_that_is_easy_is_no_membership() -> None:
    # Class 0 has a tiny loss, class 1 a large one, whoever trained on it; the forget set is mostly class 0.
    model = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1], [0.0]]))
        model[0].bias.copy_(torch.tensor([5.0, 0.0]))
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    forget = (x[:200], (torch.arange(200) % 10 == 0).long())
    held = (x[200:], (torch.arange(200) % 10 != 0).long())
    found = membership.AUC.measure(subject(model=model, forget=[forget], held_out=[held]))
    assert found["mia-loss-auc"].value == pytest.approx(0.5, abs=0.1)


def test_a_model_that_never_saw_the_samples_is_guessing_and_one_that_knows_them_is_not() -> None:
    # One input a sample: the model knows of a sample what was written into its column, and nothing else.
    x, y = torch.eye(400), torch.ones(400, dtype=torch.int64)
    knows = nn.Sequential(nn.Linear(400, 2, bias=False))
    with torch.no_grad():
        knows[0].weight.zero_()
        knows[0].weight[1, :200] = 4.0
    case = subject(model=knows, forget=[(x[:200], y[:200])], held_out=[(x[200:], y[200:])])
    found = {**membership.AUC.measure(case), **membership.TPR.measure(case)}
    assert {n.value for n in found.values()} == {1.0}
    never = subject(model=constant([0.0, 0.0], 400), forget=case.forget, held_out=case.held_out)
    assert {n.value for n in membership.AUC.measure(never).values()} == {0.5}
    assert {n.value for n in membership.TPR.measure(never).values()} == {0.0}


def test_too_few_held_out_samples_give_a_reason_and_no_number() -> None:
    few = subject(held_out=batches(rows(99, 0, (1,))))
    answer = measure(membership.TPR, few)
    assert (
        answer
        == "it needs 100 held-out samples of a forgotten sample's class at a client, there are 99 of class 1"
    )
    both = combine([answer, answer], ["mia-loss-tpr"])["mia-loss-tpr"]
    assert (both.value, both.why) == (None, answer)
    assert "there are 0 of class 1" in str(
        measure(membership.AUC, subject(held_out=batches(rows(30, 0, (0, 2)))))
    )


def test_a_client_with_nothing_to_forget_has_nothing_to_say() -> None:
    for metric in (membership.AUC, membership.TPR):
        assert measure(metric, subject(forget=[])) == {}


def test_a_model_that_diverged_is_not_measured() -> None:
    assert "not finite" in str(
        measure(membership.AUC, subject(model=constant([0.0, float("nan"), 0.0, 0.0])))
    )


def test_columns_are_what_is_measured() -> None:
    case = subject(held_out=batches(rows(150, 0, (1,))))
    for metric in (membership.AUC, membership.TPR):
        assert [c.key for c in metric.columns] == list(metric.measure(case))
        assert case.model.training, "the mode is put back"
