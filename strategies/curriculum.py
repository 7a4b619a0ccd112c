"""Curriculum: a client's samples in the order of a model's confidence, most confident first.

Bengio et al. 2009, "Curriculum Learning": easy samples first. The confidences are computed on the very
tensors that are then reordered, never on a shuffled pass beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_unlearn.batches import filled
from strategies.client import LARGE, Client, Part


def samples(client: Client, part: Part) -> tuple[Tensor, Tensor]:
    """All inputs (N, ...) and labels (N,) of a part that has samples, in the data's order."""
    inputs, labels = zip(*filled(client.batches(part)), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def confidences(model: nn.Module, x: Tensor) -> Tensor:
    """The largest probability that ``model`` gives each of the inputs (N, ...), shape (N,), on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model(part.to(device)).softmax(1).amax(1).cpu() for part in torch.split(x, LARGE)])


def by_confidence(model: nn.Module, x: Tensor) -> Tensor:
    """Positions of the inputs, the most confident first, shape (N,); equals stay in order."""
    return confidences(model, x).argsort(descending=True, stable=True)


def spread(order: Tensor, others: Tensor, seed: int) -> Tensor:
    """Positions ``order``, kept in their order, with ``others`` put in at random places; both 1-D int64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(order) + len(others), generator=generator)
    other = drawn < len(others)
    out = torch.empty(len(drawn), dtype=torch.int64)
    out[other], out[~other] = others[drawn[other]], order
    return out
