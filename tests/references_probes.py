"""Slow, obvious forms of the measures in `fl_unlearn.probes` and `fl_unlearn.membership`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def auc_by_pairs(members: Sequence[float], non_members: Sequence[float]) -> float:
    """The share of (member, non-member) pairs in which the member's number is higher, ties counting half."""
    wins = 0.0
    for a in members:
        for b in non_members:
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
    return wins / (len(members) * len(non_members))


def tpr_by_thresholds(members: Sequence[float], non_members: Sequence[float], fpr: float) -> float:
    """The best share of members over every threshold, tried one by one."""
    best = 0.0
    for threshold in {*members, *non_members}:
        if sum(b >= threshold for b in non_members) <= fpr * len(non_members):
            best = max(best, sum(a >= threshold for a in members) / len(members))
    return best


def loss_and_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """Sample by sample, in plain Python floats."""
    model = copy.deepcopy(model).double().eval()
    losses, entropies = [], []
    for row, label in zip(x, y.tolist(), strict=True):
        with torch.no_grad():
            z = model(row[None].double())[0].tolist()
        top = max(z)
        total = sum(math.exp(v - top) for v in z)
        p = [math.exp(v - top) / total for v in z]
        losses.append(top + math.log(total) - z[label])
        entropies.append(-sum(v * math.log(v) for v in p if v > 0))
    return losses, entropies


def relearned(
    model: nn.Module, x: Tensor, y: Tensor, batches: Sequence[Tensor], lr: float, momentum: float
) -> nn.Module:
    """A float64 copy after one SGD step per batch of row numbers, the update written out."""
    model = copy.deepcopy(model).double().train().requires_grad_()
    velocity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for rows in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x[rows].double()), y[rows]).backward()
        with torch.no_grad():
            for n, p in model.named_parameters():
                velocity[n] = momentum * velocity[n] + p.grad
                p -= lr * velocity[n]
    return model
