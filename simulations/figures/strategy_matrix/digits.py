"""Handwritten digits (scikit-learn's, 8 × 8 pixels) among clients that each hold all classes."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from simulations.figures.strategy_matrix.federation import Problem

TEST = 360
HIDDEN = 32


def digits(clients: int, forget: int, seed: int = 0) -> Problem:
    """The problem: 1,437 training samples in equal shares, 360 to test with.

    Args:
        clients: How many.
        forget: The class to forget, 0 to 9.
        seed: Of the split and of the first model.
    """
    generator = torch.Generator().manual_seed(seed)
    source = load_digits()
    x, y = torch.tensor(source.data, dtype=torch.float32) / 16, torch.tensor(source.target)
    order = torch.randperm(len(y), generator=generator)
    test, train = order[:TEST], order[TEST:]
    parts = [train[i::clients] for i in range(clients)]
    first = _network()
    values = {
        n: torch.randn(t.shape, generator=generator) * (0.2 if t.dim() > 1 else 0.0)
        for n, t in first.state_dict().items()
    }

    def model() -> nn.Module:
        made = _network()
        made.load_state_dict(values)
        return made

    return Problem(model, [(x[p], y[p]) for p in parts], (x[test], y[test]), forget, epochs=1)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
