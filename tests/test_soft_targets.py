"""The divergence from a teacher's probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_divergence
from torch import nn

from strategies.soft_targets import divergence, probabilities


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 6), classes=st.integers(2, 7))
def test_the_divergence_is_that_of_the_definition(seed: int, samples: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, teacher = torch.randn(2, samples, classes, generator=generator, dtype=torch.float64) * 4
    temperature = 1.0 + seed % 3
    p = (teacher / temperature).softmax(1)
    p[0, 0] = 0.0
    assert divergence(z, p, temperature).item() == pytest.approx(reference_divergence(z, p, temperature))


def test_a_student_that_answers_like_its_teacher_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    targets = probabilities(model, x, 2.0)
    assert not targets.requires_grad
    loss = divergence(model(x), targets, 2.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert divergence(model(x), targets, 1.0).item() > 1e-3
