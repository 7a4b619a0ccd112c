"""The model and the data: a few of scikit-learn's digits for each of very many clients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, TensorDataset

CLASSES, SIDE = 10, 8
HELD_OUT = 297
"""The last pictures of the data set: no client has any of them."""

Loader = DataLoader[tuple[torch.Tensor, ...]]


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A network with one hidden layer; the same weights every time."""
    hidden = int(config["hidden"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
        )


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures, float32 (1797, 8, 8) from 0 to 1, and their classes, int64 (1797,)."""
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32) / 16, torch.tensor(found.target)


def client_data(partition: int, config: Mapping[str, Any]) -> Loader:
    """A client's pictures: drawn with replacement from those of its classes, each moved by up to a pixel.

    There are 1,500 pictures to draw from, so that very many clients share them; moved, few are the same.
    """
    images, targets = digits()
    generator = torch.Generator().manual_seed(partition)
    own = torch.randperm(CLASSES, generator=generator)[: int(config["labels"])]
    pool = torch.isin(targets[:-HELD_OUT], own).nonzero().flatten()
    drawn = pool[torch.randint(len(pool), (int(config["samples"]),), generator=generator)]
    moves = torch.randint(3, (len(drawn), 2), generator=generator).tolist()
    wide = pad(images[drawn], (1, 1, 1, 1))
    moved = [w[y : y + SIDE, x : x + SIDE] for w, (y, x) in zip(wide, moves, strict=True)]
    return DataLoader(TensorDataset(torch.stack(moved), targets[drawn]), batch_size=32)


def train(model: nn.Module, batches: Loader, without: tuple[int, ...], epochs: int = 5) -> int:
    """Some passes of SGD over the pictures but those of some classes; returns how many there were."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    count = 0
    for _ in range(epochs):
        count = 0
        for x, y in batches:
            keep = ~torch.isin(y, torch.tensor(without, dtype=torch.int64))
            count += int(keep.sum())
            if bool(keep.any()):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(x[keep]), y[keep]))
                optimizer.step()
    return count


def accuracies(model: nn.Module, label: int) -> tuple[float, float]:
    """Shares of the held-out pictures that are told right: of one class, and of the others."""
    images, targets = (t[-HELD_OUT:] for t in digits())
    with torch.no_grad():
        right = (model(images).argmax(1) == targets).float()
    return float(right[targets == label].mean()), float(right[targets != label].mean())
