"""A running sum is the exact one, rounded, whatever the order."""

import math
import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.running import RunningSum

numbers = st.floats(-(2.0**90), 2.0**90, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_sum_is_exact_in_every_order(terms: list[tuple[float, float]], shuffled: random.Random) -> None:
    for _ in range(2):
        running = RunningSum()
        for a, b in terms:
            running.add({"w": torch.tensor([a, b])})
        expected = torch.tensor([math.fsum(t[i] for t in terms) for i in range(2)], dtype=torch.float64)
        # Two-fold precision: an error of less than one part in 1e15 of the largest term is all that is left.
        largest = max(abs(v) for t in terms for v in t)
        torch.testing.assert_close(running.total()["w"], expected, rtol=1e-15, atol=1e-26 * largest)
        shuffled.shuffle(terms)


def test_what_plain_sums_lose_is_kept() -> None:
    running = RunningSum()
    for value in (1e16, 1.0, -1e16):
        running.add({"w": torch.tensor([value], dtype=torch.float64)})
    assert running.total()["w"].item() == 1.0
    assert RunningSum().total() == {}


def test_terms_are_not_shared() -> None:
    running, term = RunningSum(), torch.ones(2, dtype=torch.float64)
    running.add({"w": term})
    term += 1
    assert running.total()["w"].tolist() == [1.0, 1.0]
