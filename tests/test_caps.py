import pytest
import references_defence as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.caps import capped, exceeds
from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.defence import OFF, Defence
from fl_unlearn.types import SettingsError, UnlearnSettings, signature_of

ROWS, WIDTH = 4, 6


def drawn(seed: int) -> DampeningUpdate:
    generator = torch.Generator().manual_seed(seed)
    state = {"head.weight": torch.zeros(ROWS, WIDTH), "head.bias": torch.zeros(ROWS), "fc": torch.zeros(3, 5)}
    forget, kept = ({n: torch.rand(t.shape, generator=generator) for n, t in state.items()} for _ in "fr")
    return build_update(forget, kept, threshold=1.0, signature=signature_of(state))


def is_head(name: str) -> bool:
    return name.startswith("head.")


@given(st.integers(0, 500), st.sampled_from([0.01, 0.2, 0.5, 0.8, 1.0]), st.sets(st.integers(0, ROWS - 1)))
def test_cap_equals_reference(seed: int, share: float, forgotten: set[int]) -> None:
    update, defence = drawn(seed), Defence(row_share=share, tensor_share=share)
    got = capped(update, defence, forgotten, is_head)
    for name, entry in update.entries.items():
        factors = dict(zip(entry.indices.tolist(), entry.factors.tolist(), strict=True))
        expected = set(factors)
        if name == "fc":
            expected = reference.kept_of_row(factors, 15, share)
        elif name == "head.weight":
            rows = {i: {j: f for j, f in factors.items() if j // WIDTH == i} for i in range(ROWS)}
            expected = set()
            for i, own in rows.items():
                expected |= set(own) if i in forgotten else reference.kept_of_row(own, WIDTH, share)
        kept = got.entries[name].indices.tolist() if name in got.entries else []
        assert set(kept) == expected
        assert kept == sorted(kept)
    assert exceeds(got, defence, forgotten, is_head) is None
    if share < 1 and got.digest != update.digest:
        assert exceeds(update, defence, forgotten, is_head) is not None


@given(st.integers(0, 50))
def test_every_variant_keeps_to_the_cap(seed: int) -> None:
    defence = Defence(row_share=0.34)
    base = capped(drawn(seed), defence, {1}, is_head)
    for t in (1.0, 1.5, 3.0):
        assert exceeds(base.variant(t, 0.5), defence, {1}, is_head) is None
    assert capped(drawn(seed), OFF, (), is_head).digest == drawn(seed).digest


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"clip": 0.5}, "clip must be None or"),
        ({"clip": float("nan")}, "clip must be None or"),
        ({"weight": 0.0}, "weight must be a finite number from 1 up"),
        ({"reference_rule": "mode"}, "reference_rule must be one of mean, median"),
        ({"row_share": 0.0}, "row_share must be above 0"),
        ({"tensor_share": 1.5}, "tensor_share must be above 0"),
        ({"liars": 0.5}, "no vote stands half"),
        ({"contradiction": -0.1}, "contradiction must lie"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, object], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        UnlearnSettings(defence=Defence(**changes))  # type: ignore[arg-type]
