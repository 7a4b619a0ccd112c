"""Slow, obvious forms of what strategies that teach or impair compute: one sample and one class at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reference_softmax(row: list[float]) -> list[float]:
    """exp(z_c) / Σ exp(z)."""
    top = max(row)
    total = sum(math.exp(z - top) for z in row)
    return [math.exp(z - top) / total for z in row]


def reference_virtual_teacher(logits: Tensor, y: Tensor, kind: str) -> Tensor:
    """FedQUIT's teacher: the true class at the least logit, or at 0 and the rest over their sum."""
    out = []
    for z, true in zip(logits.tolist(), y.tolist(), strict=True):
        if kind == "logits":
            z[true] = min(z)
            out.append(reference_softmax(z))
        else:
            p = reference_softmax(z)
            p[true] = 0.0
            out.append([q / sum(p) for q in p])
    return torch.tensor(out, dtype=logits.dtype)


def reference_divergence(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Mean over samples of Σ p log(p / q), 0 log 0 being 0."""
    total = 0.0
    for z, p in zip(logits.tolist(), targets.tolist(), strict=True):
        q = reference_softmax([v / temperature for v in z])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return total / len(logits)


def reference_cross_entropy(logits: Tensor, y: Tensor) -> float:
    """Mean over samples of −log softmax(z)_y."""
    rows = zip(logits.tolist(), y.tolist(), strict=True)
    return sum(-math.log(reference_softmax(z)[true]) for z, true in rows) / len(y)


def reference_noise_loss(logits: Tensor, x: Tensor, y: Tensor, penalty: float) -> float:
    """−CE + λ times the mean over samples of the sum of squares."""
    squares = sum(v * v for v in x.flatten().tolist()) / len(x)
    return penalty * squares - reference_cross_entropy(logits, y)


def reference_curriculum(logits: Tensor) -> list[int]:
    """Positions by falling confidence, equals in order."""
    confident = [(max(reference_softmax(z)), i) for i, z in enumerate(logits.tolist())]
    return [i for _, i in sorted(confident, key=lambda pair: (-pair[0], pair[1]))]
