"""The entropy SVC: how its training set is drawn, what it finds, and what it says when it cannot be run."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_cases import batches, constant, net, rows, subject
from references_probes import loss_and_entropy
from sklearn.svm import SVC
from torch import nn

from fl_unlearn.metrics.contract import measure
from fl_unlearn.metrics.entropy_svc import ENTROPY_SVC, balanced

labels = st.lists(st.integers(0, 4), max_size=40)


@given(labels, labels, st.integers(1, 50), st.integers(0, 9))
def test_either_kind_has_as_many_of_each_label(a: list[int], b: list[int], most: int, seed: int) -> None:
    first, second = torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64)
    left, right = balanced(first, second, most, seed)
    kinds = [Counter(first[left].tolist()), Counter(second[right].tolist())]
    common = Counter(a) & Counter(b)
    share = min(1.0, most / max(1, common.total()))
    assert kinds[0] == kinds[1] == +Counter({c: int(share * n) for c, n in common.items()})
    assert len(set(left.tolist())) == len(left) <= most
    assert len(set(right.tolist())) == len(right)


def test_the_draw_is_random_and_repeats_with_the_seed() -> None:
    many, few = torch.zeros(500, dtype=torch.int64), torch.zeros(50, dtype=torch.int64)
    one, again, other = (balanced(many, few, 100, seed)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other
    assert np.mean(one) == pytest.approx(250, abs=75), "not the first of the client's data"


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_share_that_the_classifier_calls_members(seed: int) -> None:
    # As many retained as held-out samples of each label: nothing is left to the draw but the order.
    x, y = rows(40, seed, (0, 2, 3))
    retained, held, forget = (x, y), (x * 0.3, y), rows(25, seed + 9, (1,))
    case = subject(model=net(seed), forget=[forget], retained=batches(retained), held_out=batches(held))
    found = ENTROPY_SVC.measure(case)["mia-svc"]
    inside, outside, asked = (loss_and_entropy(net(seed), *part)[1] for part in (retained, held, forget))
    attack = SVC(C=3, gamma="auto").fit([[v] for v in inside + outside], [1] * 40 + [0] * 40)
    assert found.value == pytest.approx(np.mean([attack.predict([[v]])[0] for v in asked]))
    assert found.samples == 25
    assert ENTROPY_SVC.measure(case)["mia-svc"] == found, "the same seed gives the same answer"


def test_known_samples_are_called_members_and_unknown_ones_are_not() -> None:
    # One input a sample: the model is sure of those that were written into it.
    x, y = torch.eye(300), torch.arange(300) % 2
    model = nn.Sequential(nn.Linear(300, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[y[:200], torch.arange(200)] = 5.0
    parts = {"retained": [(x[:100], y[:100])], "held_out": [(x[200:], y[200:])]}
    knows = subject(model=model, forget=[(x[100:200], y[100:200])], **parts)
    assert ENTROPY_SVC.measure(knows)["mia-svc"].value == 1.0
    with torch.no_grad():
        model[0].weight[:, 100:200] = 0.0
    assert ENTROPY_SVC.measure(knows)["mia-svc"].value == 0.0


def test_too_few_samples_give_a_reason_and_no_number() -> None:
    few = subject(retained=batches(rows(19, 0, (0,))), held_out=batches(rows(60, 1, (0, 1))))
    assert "needs 20 retained samples" in str(measure(ENTROPY_SVC, few))
    other = subject(retained=batches(rows(30, 0, (0,))), held_out=batches(rows(60, 1, (2,))))
    assert "0 match" in str(measure(ENTROPY_SVC, other))


def test_a_client_that_keeps_nothing_cannot_train_the_attack() -> None:
    assert "no members to train the attack on" in str(measure(ENTROPY_SVC, subject(retained=[])))


def test_a_client_with_nothing_to_forget_has_nothing_to_say() -> None:
    assert measure(ENTROPY_SVC, subject(forget=[])) == {}


def test_without_scikit_learn_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    assert "pip install 'fl-unlearn[sim]'" in str(measure(ENTROPY_SVC, subject()))


def test_a_model_that_diverged_is_not_measured() -> None:
    assert "not finite" in str(measure(ENTROPY_SVC, subject(model=constant([0.0, float("nan"), 0.0, 0.0]))))
