"""Digits, a small network, and training it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Arrays = Sequence[np.ndarray[Any, Any]]


def new_model() -> nn.Module:
    """The network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load(part: int, parts: int, exclude: Collection[int] = ()) -> DataLoader[Any]:
    """One part of the digits; the last is for testing."""
    source = load_digits()
    x, y = torch.tensor(source.data[part::parts] / 16, dtype=torch.float32), source.target[part::parts]
    keep = torch.tensor(~np.isin(y, list(exclude)))
    return DataLoader(TensorDataset(x[keep], torch.tensor(y)[keep]), batch_size=16)


def get(model: nn.Module) -> list[np.ndarray[Any, Any]]:
    """A model's values."""
    return [value.numpy() for value in model.state_dict().values()]


def put(model: nn.Module, arrays: Arrays) -> None:
    """Give a model values."""
    model.load_state_dict(dict(zip(model.state_dict(), map(torch.tensor, arrays), strict=True)))


def train(model: nn.Module, batches: DataLoader[Any]) -> None:
    """One epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def accuracies(model: nn.Module, batches: DataLoader[Any], label: int) -> tuple[float, float]:
    """Accuracy on one class, and on all others."""
    pairs = [(model(x).argmax(1) == y, y == label) for x, y in batches]
    right, named = (torch.cat(column) for column in zip(*pairs, strict=True))
    return float(right[named].float().mean()), float(right[~named].float().mean())
