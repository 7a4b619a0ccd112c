"""What privacy settings allow, what a client insists on, and what epsilon is told."""

import math
import sys

import pytest

from fl_unlearn.privacy import Privacy, cost, epsilon
from fl_unlearn.types import SettingsError, UnlearnSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": -1.0},
        {"noise": math.nan},
        {"score_noise": math.inf},
        {"clip": 0.0},
        {"delta": 1.0},
        {"delta": 0.0},
    ],
)
def test_senseless_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Privacy(**wrong)


@pytest.mark.parametrize(
    ("asked", "least", "why"),
    [
        (Privacy(), Privacy(), None),
        (Privacy(noise=2.0), Privacy(noise=1.0), None),
        (Privacy(noise=0.5), Privacy(noise=1.0), "noise 0.5"),
        (Privacy(noise=1.0, clip=2.0), Privacy(noise=1.0, clip=1.0), "clip 2"),
        (Privacy(noise=1.0), Privacy(noise=1.0, score_noise=1.0), "score_noise 0"),
        (Privacy(), Privacy(pooled=True), "scores by class"),
        (Privacy(masked=True), Privacy(pooled=True), None),
        (Privacy(pooled=True), Privacy(masked=True), "without masks"),
    ],
)
def test_a_client_sees_what_is_less_than_it_insists_on(
    asked: Privacy, least: Privacy, why: str | None
) -> None:
    found = asked.weaker(least)
    assert found is None if why is None else why in str(found)


def test_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    # Balle and Wang 2018, theorem 8: delta of a Gaussian mechanism with sensitivity 1 and deviation z.
    def delta(eps: float, z: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return phi(0.5 / z - eps * z) - math.exp(eps) * phi(-0.5 / z - eps * z)

    for z in (0.7, 1.0, 3.0):
        told = epsilon((z,), 1e-5)
        assert delta(told, z) <= 1e-5 < delta(0.85 * told, z), "an upper bound, and not a loose one"
    assert epsilon((0.01,), 1e-5) > 1000
    # Two of deviation z are one of z / sqrt(2).
    assert epsilon((2.0, 2.0), 1e-5) == pytest.approx(epsilon((math.sqrt(2),), 1e-5), rel=1e-3)
    assert epsilon((), 1e-5) == 0.0
    assert epsilon((1.0, 0.0), 1e-5) is None


def test_cost_says_what_it_is_not_about() -> None:
    told = cost([2.0, 2.0], [2.0, 2.0], Privacy(noise=2.0))
    assert told["epsilon_so_far"] > told["epsilon"] > 0
    assert any("scores" in text for text in told["not_covered"])
    assert not any("Fisher" in text for text in told["not_covered"])
    masked = cost([], [], Privacy(masked=True))
    assert masked["epsilon"] is None
    assert any("Fisher" in text for text in masked["not_covered"])


def test_without_the_accountant_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingsError, match=r"fl-unlearn\[privacy\]"):
        epsilon((1.0,), 1e-5)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"erase": "auto"}, "erase='none'"),
        ({"measures": ("zrf",)}, "measures"),
        ({"reference": "per-model"}, "shared"),
        ({"fisher_kind": "batch"}, "empirical"),
    ],
)
def test_settings_that_would_let_out_more_are_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        UnlearnSettings(privacy=Privacy(noise=1.0), **wrong)
