"""Slow, obvious implementations of merging and dampening: one element at a time, in plain Python floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fl_unlearn.merge import FisherPart


def merge(parts: Sequence[FisherPart], rule: str, divisor: float = 5.0) -> dict[str, torch.Tensor]:
    out = {}
    for name, first in parts[0].mean.items():
        values = []
        for i in range(first.numel()):
            column = [float(p.mean[name].flatten()[i]) for p in parts]
            counts = [p.count for p in parts]
            if rule == "max":
                values.append(max(column))
            elif rule == "sum":
                values.append(sum(column))
            elif rule == "mean":
                values.append(sum(c * n for c, n in zip(column, counts, strict=True)) / sum(counts))
            elif rule == "max-divided":
                holders = sorted({p.holder for p in parts})
                pooled = []
                for h in holders:
                    own = [(c, p.count) for c, p in zip(column, parts, strict=True) if p.holder == h]
                    pooled.append(sum(c * n for c, n in own) / sum(n for _, n in own))
                values.append(max(pooled) / divisor ** (len(holders) - 1))
        out[name] = torch.tensor(values, dtype=torch.float64).reshape(first.shape)
    return out


def dampened(
    state: Mapping[str, torch.Tensor],
    forget: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    threshold: float,
    dampening: float,
) -> dict[str, torch.Tensor]:
    """FIUn on a whole model: theta <- theta * min(1, lambda F_r / F_f) wherever F_f > t F_r."""
    out = {}
    for name, tensor in state.items():
        values = tensor.double().flatten().tolist()
        if name in forget:
            for i in range(len(values)):
                f, r = float(forget[name].flatten()[i]), float(reference[name].flatten()[i])
                if f > threshold * r:
                    values[i] *= min(1.0, dampening * r / f)
        out[name] = torch.tensor(values, dtype=torch.float64).reshape(tensor.shape)
    return out
