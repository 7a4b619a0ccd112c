"""Activation distance, compared with one sample at a time, and where the answer is known."""

from __future__ import annotations

import math

import pytest
from metric_cases import batches, constant, net, rows, subject
from references_metrics import activation_distance

from fl_unlearn.metrics.activation_distance import ACTIVATION_DISTANCE
from fl_unlearn.metrics.contract import measure


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_over_the_forget_set(seed: int) -> None:
    data = rows(30, seed)
    found = ACTIVATION_DISTANCE.measure(subject(seed, forget=batches(data)))["activation-distance"]
    assert found.value == pytest.approx(activation_distance(net(seed), net(seed + 1), data[0]), abs=1e-6)
    assert found.samples == 30


def test_known_distances() -> None:
    case = subject()
    same = measure(ACTIVATION_DISTANCE, subject(original=case.model, model=case.model))
    assert same["activation-distance"].value == 0.0
    sure, other, even = constant([2000.0, 0.0]), constant([0.0, 2000.0]), constant([0.0, 0.0])
    for model, expected in ((other, math.sqrt(2)), (even, math.sqrt(0.5))):
        found = ACTIVATION_DISTANCE.measure(subject(model=model, original=sure))["activation-distance"]
        assert found.value == pytest.approx(expected)


def test_a_client_with_nothing_to_forget_has_nothing_to_say() -> None:
    assert measure(ACTIVATION_DISTANCE, subject(forget=[])) == {}
