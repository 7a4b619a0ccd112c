from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_erase import class_covariance, dense_map, probe_gain, sums
from torch.testing import assert_close

from fl_unlearn.erase import Erasure, erasure
from fl_unlearn.layer_stats import LayerSums
from fl_unlearn.types import REST, EraseError


def cloud(d: int = 6, n: int = 300, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated observations with a mean and a direction of their own for each class."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    centres = 2 * torch.randn(classes, d, generator=g, dtype=torch.float64)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    noise = torch.randn(n, d, generator=g, dtype=torch.float64) @ mix
    return centres[y] + noise + 5, y


def of(rows: torch.Tensor, labels: torch.Tensor, classes: list[int]) -> LayerSums:
    return LayerSums(*sums(rows, labels, classes))


def mapped(e: Erasure, rows: torch.Tensor) -> torch.Tensor:
    return (e.linear(rows.T) + e.shift[:, None]).T


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(2, 9),
    seed=st.integers(0, 10**6),
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    strength=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_the_map_is_that_of_the_formula(d: int, seed: int, classes: list[int], strength: float) -> None:
    rows, labels = cloud(d=d, seed=seed)
    made = erasure(of(rows, labels, classes), classes, strength=strength, cutoff=1e-12)
    expected = dense_map(rows, labels, classes, strength)
    assert_close(made.linear(torch.eye(d, dtype=torch.float64)), expected, atol=1e-7, rtol=1e-7)
    after = mapped(made, rows)
    assert_close(after, (rows - rows.mean(0)) @ expected.T + rows.mean(0), atol=1e-6, rtol=1e-7)
    left = class_covariance(after, labels, classes)
    assert_close(left, (1 - strength) * class_covariance(rows, labels, classes), atol=1e-8, rtol=1e-8)


def test_a_linear_probe_finds_nothing_and_the_mean_stays() -> None:
    rows, labels = cloud(d=8, n=500)
    made = erasure(of(rows, labels, [1, 2]), [1, 2])
    after = mapped(made, rows)
    for label in (1, 2):
        assert probe_gain(rows, labels, label) > 0.2
        assert abs(probe_gain(after, labels, label)) < 1e-8
    assert probe_gain(after, labels, 3) > 0.05
    assert_close(after.mean(0), rows.mean(0))
    assert made.a.shape == (8, 2)


def test_an_output_that_does_not_vary_is_left_alone() -> None:
    rows, labels = cloud(d=5)
    dead = torch.full((len(rows), 1), 3.0, dtype=torch.float64)
    wide = torch.cat([rows, dead, rows[:, :1] + rows[:, 1:2]], dim=1)
    made = erasure(of(wide, labels, [0]), [0])
    assert_close(made.a[5], torch.zeros(1, dtype=torch.float64), atol=1e-6, rtol=0)
    after = mapped(made, wide)
    assert abs(probe_gain(after, labels, 0)) < 1e-6
    assert_close(after[:, 5], wide[:, 5], atol=1e-6, rtol=0)
    assert_close(after[:, 6], after[:, 0] + after[:, 1], atol=1e-6, rtol=0)


def test_complementary_classes_cost_one_direction() -> None:
    rows, labels = cloud(classes=2)
    assert erasure(of(rows, labels, [0, 1]), [0, 1]).a.shape[1] == 1


def test_a_class_without_observations_is_passed_over() -> None:
    rows, labels = cloud()
    one = erasure(of(rows, labels, [1]), [1])
    both = erasure(of(rows, labels, [1, 9]), [1, 9])
    assert_close(one.a @ one.b.T, both.a @ both.b.T)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    rows, labels = cloud()
    with pytest.raises(EraseError, match="strength"):
        erasure(of(rows, labels, [1]), [1], strength=strength)


def test_nothing_to_erase_is_said() -> None:
    rows, labels = cloud()
    with pytest.raises(EraseError, match=r"of 300 observations, those of the classes are \{7: 0\}"):
        erasure(of(rows, labels, [7]), [7])
    with pytest.raises(EraseError, match="no observation"):
        erasure(LayerSums.zeros(3, [1, -1]), [1])
    constant = torch.ones_like(rows)
    with pytest.raises(EraseError, match="does not vary"):
        erasure(of(constant, labels, [1]), [1])


def test_squares_go_with_the_square_of_the_map() -> None:
    rows, labels = cloud(d=7)
    made = erasure(of(rows, labels, [1, 2]), [1, 2], strength=0.7)
    dense = made.linear(torch.eye(7, dtype=torch.float64))
    values = torch.rand(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close(made.squared(values), dense.square() @ values, atol=1e-9, rtol=1e-9)


def test_what_is_no_erasure_is_refused() -> None:
    rows, labels = cloud()
    good = erasure(of(rows, labels, [1]), [1])
    good.validate()
    bad = {
        "shapes": replace(good, b=good.b[:-1]),
        "finite float64": replace(good, mean=good.mean * float("nan")),
        "float64": replace(good, a=good.a.float()),
        "strength": replace(good, strength=2.0),
        "identity": replace(good, a=2 * good.a),
    }
    for match, made in bad.items():
        with pytest.raises(EraseError, match=match):
            made.validate()


def test_statistics_too_large_to_add() -> None:
    """Each answer may be true on its own."""
    zero = torch.zeros(2, dtype=torch.float64)
    one = LayerSums({3: 2, REST: 2}, {3: zero, REST: zero}, 8e307 * torch.eye(2, dtype=torch.float64))
    one.validate()
    with pytest.raises(EraseError, match="too large to add"):
        erasure(one + one + one, [3])
