"""Gaps to retraining and the tug-of-war: plain arithmetic, and no number where one is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.metrics.contract import Measured
from fl_unlearn.metrics.gaps import COLUMNS, TUG_OF_WAR, gap, gaps, tug_of_war

KEYS = ("forget-accuracy", "retain-accuracy", "held-retain-accuracy")
shares = st.tuples(*[st.floats(0, 1)] * 3)


def measured(values: tuple[float | None, ...], samples: int = 10) -> dict[str, Measured]:
    return {
        k: Measured(v, samples if v is not None else 0, "" if v is not None else "gone")
        for k, v in zip(KEYS, values, strict=True)
    }


@given(shares, shares)
def test_gaps_and_their_product(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    found = gaps(measured(a), measured(b, 7))
    product = 1.0
    for key, x, y in zip(("gap-forget", "gap-retain", "gap-held"), a, b, strict=True):
        assert found[key] == Measured(max(x, y) - min(x, y), 7)
        product *= 1 - abs(x - y)
    assert found[TUG_OF_WAR].value == pytest.approx(product, abs=1e-15)
    assert found[TUG_OF_WAR].samples == 7
    assert list(found) == [c.key for c in COLUMNS]


def test_the_retrained_model_has_no_gap() -> None:
    found = gaps(measured((0.0, 0.9, 0.8)), measured((0.0, 0.9, 0.8)))
    assert [m.value for m in found.values()] == [0.0, 0.0, 0.0, 1.0]


def test_a_model_that_forgot_nothing_and_a_retrained_one_that_never_knew() -> None:
    found = gaps(measured((1.0, 0.9, 0.8)), measured((0.0, 0.9, 0.8)))
    assert found[TUG_OF_WAR].value == 0.0


def test_what_was_not_measured_has_no_gap_but_a_reason() -> None:
    found = gaps(measured((None, 0.9, 0.8)), measured((0.0, 0.9, None)))
    assert (found["gap-forget"].value, found["gap-forget"].why) == (None, "gone")
    assert found["gap-retain"].value == 0.0
    assert found["gap-held"].why == "no retrained value to compare with: gone"
    assert (found[TUG_OF_WAR].value, found[TUG_OF_WAR].why) == (None, "gap-forget: gone")
    assert gaps({}, {})["gap-retain"].why == "not measured"
    assert gap(Measured(0.5, 3), None).why == "no retrained value to compare with: not measured"
    assert tug_of_war({"a": Measured(0.5, 3), "b": Measured(0.5, 2)}) == Measured(0.25, 2)
