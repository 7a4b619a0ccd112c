import random

import pytest
import references_update as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.merge import RULES, FisherPart, merge, register
from fl_unlearn.types import FisherError, SettingsError


@st.composite
def parts(draw: st.DrawFn) -> list[FisherPart]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shapes = draw(
        st.dictionaries(st.sampled_from("abc"), st.sampled_from([(), (1,), (3,), (2, 3), (0,)]), min_size=1)
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    out = []
    for i in range(draw(st.integers(1, 5))):
        mean = {n: torch.rand(s, generator=generator, dtype=dtype) for n, s in shapes.items()}
        out.append(FisherPart(draw(st.sampled_from(["p", "q", "r"])), i, mean, draw(st.integers(1, 50))))
    return out


@pytest.mark.parametrize("rule", ["max", "mean", "sum", "max-divided"])
@given(parts())
def test_rule_equals_reference(rule: str, given_parts: list[FisherPart]) -> None:
    expected = reference.merge(given_parts, rule)
    torch.testing.assert_close(merge(given_parts, rule), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["max", "mean", "sum", "max-divided"])
@given(parts(), st.randoms(use_true_random=False))
def test_order_does_not_matter(rule: str, given_parts: list[FisherPart], shuffled: random.Random) -> None:
    merged = merge(given_parts, rule)
    shuffled.shuffle(given_parts)
    for name, tensor in merge(given_parts, rule).items():
        assert torch.equal(tensor, merged[name])


def test_parts_without_samples_are_ignored() -> None:
    full = FisherPart("a", 0, {"w": torch.tensor([1.0, 2.0])}, 3)
    empty = FisherPart("b", 0, {"w": torch.tensor([9.0, 9.0])}, 0)
    torch.testing.assert_close(merge([full, empty])["w"], torch.tensor([1.0, 2.0], dtype=torch.float64))
    with pytest.raises(FisherError, match="no holder has a sample"):
        merge([empty])


def test_different_models_are_refused() -> None:
    a = FisherPart("a", 0, {"w": torch.ones(2)}, 1)
    for other in ({"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2), "v": torch.ones(1)}):
        with pytest.raises(FisherError, match="other names or shapes"):
            merge([a, FisherPart("b", 0, other, 1)])


def test_unknown_and_new_rules() -> None:
    part = FisherPart("a", 0, {"w": torch.tensor([4.0])}, 1)
    with pytest.raises(SettingsError, match="unknown merge rule 'mode'; known: max"):
        merge([part], "mode")

    class First:
        def __init__(self) -> None:
            self.parts: list[FisherPart] = []

        def add(self, part: FisherPart) -> None:
            self.parts.append(part)

        def result(self) -> dict[str, torch.Tensor]:
            return {n: t.double() for n, t in self.parts[0].mean.items()}

    register("first")(First)
    try:
        assert merge([part], "first")["w"].item() == 4.0
        with pytest.raises(SettingsError, match="registered already"):
            register("first")(RULES["max"])
    finally:
        del RULES["first"]
