"""Small subjects for tests of metrics: a client's data and the models it measures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fl_unlearn.metrics.contract import Subject

Rows = tuple[Tensor, Tensor]


def net(seed: int, features: int = 5, classes: int = 4) -> nn.Sequential:
    """A small classifier with dropout, so that a metric that forgets eval mode is noticed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(features, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, classes)
        ).train()


def rows(n: int, seed: int, labels: tuple[int, ...] = (0, 1, 2, 3), features: int = 5) -> Rows:
    """Random samples; labels drawn from those given."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, features, generator=generator)
    return x, torch.tensor(labels)[torch.randint(len(labels), (n,), generator=generator)]


def batches(data: Rows, size: int = 7) -> list[Rows]:
    """The same in uneven batches, an empty one among them."""
    x, y = data
    return [(x[:0], y[:0]), *zip(x.split(size), y.split(size), strict=True)]


def subject(seed: int = 0, **changes) -> Subject:
    """A client of 4 classes that is to forget class 1."""
    made = Subject(
        model=net(seed),
        original=net(seed + 1),
        fresh=net(seed + 2),
        forget=batches(rows(30, seed, (1,))),
        retained=batches(rows(60, seed + 1, (0, 2, 3))),
        held_out=batches(rows(80, seed + 2)),
        classes=(1,),
        seed=seed,
    )
    return replace(made, **changes)


def constant(logits: list[float], features: int = 5) -> nn.Module:
    """A model that answers everything alike."""
    model = nn.Sequential(nn.Linear(features, len(logits)))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor(logits))
    return model
