"""ZRF: the divergence by its definition, zero probabilities, cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_cases import batches, constant, net, rows, subject
from references_metrics import js_bits, zrf

from fl_unlearn.metrics.contract import measure
from fl_unlearn.metrics.zrf import ZRF, js_divergence

weights = st.lists(st.sampled_from([0.0, 1e-300, 1e-12, 0.1, 1.0, 7.0]), min_size=5, max_size=5)


@given(weights.filter(any), weights.filter(any))
def test_divergence_is_its_definition(a: list[float], b: list[float]) -> None:
    p, q = ([v / sum(w) for v in w] for w in (a, b))
    found = js_divergence(*(torch.tensor([v], dtype=torch.float64) for v in (p, q)))
    assert found.item() == pytest.approx(js_bits(p, q), abs=1e-12)
    assert 0 <= found.item() <= 1


def test_divergences_that_are_known() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    half = 0.5 * (math.log2(1 / 0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25))
    assert js_divergence(p, q).tolist() == pytest.approx([1.0, 0.0, half], abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_zrf_is_the_mean_over_the_forget_set(seed: int) -> None:
    data = rows(30, seed)
    case = subject(seed, forget=batches(data))
    found = ZRF.measure(case)["zrf"]
    assert found.value == pytest.approx(zrf(net(seed), net(seed + 2), data[0]), abs=1e-6)
    assert found.samples == 30
    assert case.model.training
    assert case.fresh.training


def test_zrf_of_known_models() -> None:
    same = subject()
    assert ZRF.measure(subject(model=same.fresh, fresh=same.fresh))["zrf"].value == 1.0
    opposite = subject(model=constant([0.0, 2000.0]), fresh=constant([2000.0, 0.0]))
    assert ZRF.measure(opposite)["zrf"].value == pytest.approx(0.0, abs=1e-12)
    masked = subject(model=constant([0.0, 0.0, 0.0, -1e4]), fresh=constant([0.0, 0.0, 0.0, 0.0]))
    assert ZRF.measure(masked)["zrf"].value == pytest.approx(1 - js_bits([1 / 3] * 3 + [0], [1 / 4] * 4))


def test_a_client_with_nothing_to_forget_has_nothing_to_say() -> None:
    assert measure(ZRF, subject(forget=[])) == {}


def test_a_model_that_diverged_is_not_measured() -> None:
    assert "not finite" in str(measure(ZRF, subject(model=constant([0.0, float("inf"), 0.0, 0.0]))))
