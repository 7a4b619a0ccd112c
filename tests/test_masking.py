"""Masked sums: exact to fixed point, unreadable one by one, and refused where masks could not protect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_unlearn.masking import MaskKey, decode, encode
from fl_unlearn.types import AnswerError, RequestError

values = arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6))


def masked(terms: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    names = [f"client {i}" for i in range(len(terms))]
    kept = [MaskKey() for _ in names]
    publics = {n: k.public for n, k in zip(names, kept, strict=True)}
    return [MaskKey(k.private).mask(n, publics, v) for n, k, v in zip(names, kept, terms, strict=True)], names


@given(values)
def test_masks_cancel_in_the_sum(terms: np.ndarray) -> None:
    sent, _ = masked(terms)
    total = sum(sent, start=np.zeros(4, np.uint64))
    np.testing.assert_allclose(decode(total), terms.sum(axis=0), rtol=1e-15, atol=3 * 2.0**-33)


def test_one_summand_tells_nothing_without_the_others() -> None:
    terms = np.zeros((3, 20_000))
    sent, _ = masked(terms)
    for part in (*sent, sent[0] + sent[1]):  # of all but one, too
        bits = np.unpackbits(part.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 0.005  # 640,000 fair bits: eight standard deviations


def test_what_masks_could_not_protect_is_refused() -> None:
    key, other, third = MaskKey(), MaskKey(), MaskKey()
    ones = np.ones(2)
    with pytest.raises(RequestError, match="needs 3 clients or more"):
        key.mask("a", {"a": key.public, "b": other.public}, ones)
    with pytest.raises(RequestError, match="with keys of their own"):
        key.mask("a", {"a": key.public, "b": other.public, "c": other.public}, ones)
    with pytest.raises(RequestError, match="'a' is not in the masked sum with the key"):
        key.mask("a", {"a": third.public, "b": other.public, "c": key.public}, ones)
    with pytest.raises(RequestError, match="mask key of client 'b' cannot be used"):
        key.mask("a", {"a": key.public, "b": bytes(32), "c": third.public}, ones)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31)])
def test_values_that_do_not_fit_are_refused(bad: float) -> None:
    with pytest.raises(AnswerError, match="finite and below"):
        encode(np.array([0.0, bad]), 1)
    assert decode(encode(np.array([2.0**30 - 1, -0.25]), 1)).tolist() == [2.0**30 - 1, -0.25]
