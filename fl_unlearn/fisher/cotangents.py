"""Cotangents of the logits: what each kind of Fisher diagonal sends backwards.

Everything is a sum over samples n of (Jₙᵀ u)², with Jₙ the Jacobian of the logits of sample n by the
parameters and u a cotangent of the logits that depends on the kind of Fisher only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

FAINT = 1e-6  # below this norm, squares of float32 gradients come near the smallest numbers
HALF_SCALE = 256.0  # lifts gradients of activations above the subnormal numbers of float16


def residual(z: Tensor, y: Tensor) -> Tensor:
    """softmax(z) − onehot(y) for logits (N, C), labels (N,), float64, without cancellation."""
    index = y[:, None]
    others = z.double().softmax(1).scatter(1, index, 0.0)
    return others.scatter(1, index, -others.sum(1, keepdim=True))


def direction(z: Tensor, y: Tensor) -> Tensor:
    """`residual` divided by its Euclidean norm, row by row, in float64, shape (N, C).

    With r the softmax over the classes other than y, softmax(z) − onehot(y) = (1 − p_y) (r − onehot(y)), so
    the norm's small factor cancels before anything can underflow: confident samples keep their direction
    however small their gradient is. With a single class there is no gradient, and the row is zero.
    """
    if z.shape[1] == 1:
        return torch.zeros_like(z, dtype=torch.float64)
    index = y[:, None]
    e: Tensor = z.double().scatter(1, index, -torch.inf).softmax(1).scatter(1, index, -1.0)
    return e / e.square().sum(1, keepdim=True).sqrt()


def cotangents(kind: str, z: Tensor, y: Tensor, drawn: Tensor | None = None) -> Iterator[Tensor]:
    """The u, each of shape (N, C) in float64, whose (Jᵀ u)² add up to a sample's share; not for "batch".

    Args:
        kind: "empirical", "normalized" or "true".
        z: Logits, shape (N, C).
        y: Labels, shape (N,).
        drawn: Labels drawn from the model, shape (N, k): for "true", the mean over these takes the place of
            the expectation over all classes.
    """
    if kind == "empirical":
        yield residual(z, y)
    elif kind == "normalized":
        yield direction(z, y)
    elif drawn is not None:
        for labels in drawn.unbind(1):
            yield residual(z, labels) / drawn.shape[1] ** 0.5
    else:
        p = z.double().softmax(1)
        for c in range(z.shape[1]):
            yield p[:, c : c + 1].sqrt() * residual(z, torch.full_like(y, c))


def draw_labels(z: Tensor, uniform: Tensor) -> Tensor:
    """Labels (N, k) drawn from softmax(z), logits (N, C), by uniform numbers (N, k) in [0, 1), float64."""
    steps = z.double().softmax(1).cumsum(1)
    return torch.searchsorted(steps, uniform * steps[:, -1:], right=True).clamp_(max=z.shape[1] - 1)


def squared_cotangents(kind: str, z: Tensor, y: Tensor) -> Tensor:
    """Element-wise sum of the squares of `cotangents`, shape (N, C): all that a head needs.

    For "true" the sum over c of p_c (p_k − 1[k = c])² is p_k² (1 − p_k) + p_k (1 − p_k)² = p_k (1 − p_k).
    """
    if kind != "true":
        return next(cotangents(kind, z, y)).square()
    top = z.argmax(1)
    p = z.double().softmax(1)
    # 1 − p cancels only for the largest p; there it is the sum of the others.
    return p * (1.0 - p).scatter(1, top[:, None], -residual(z, top).gather(1, top[:, None]))


def weights_of(kind: str, z: Tensor, y: Tensor, rows: Sequence[Tensor]) -> torch.dtype | None:
    """How precise row weights must be for `propagated`, or None where cotangents can go back as they are.

    Args:
        kind: Kind of Fisher.
        z: Logits, shape (N, C), in the dtype that the backward pass has.
        y: Labels, shape (N,).
        rows: Rows of each group.
    """
    if z.dtype == torch.float64:
        return None
    if kind != "normalized":
        norms = squared_cotangents(kind, z, y).sum(1)
        if any(0.0 < float(norms[r].max()) < FAINT**2 for r in rows):
            return torch.float64
    return torch.float32 if z.dtype == torch.float16 else None


def propagated(u: Tensor, dtype: torch.dtype, weights: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """What to send back for cotangents u (N, C), and the weight (N,) that each row's gradient then gets.

    A confident sample's cotangent may be so small that its gradients, or their squares, underflow. Its
    direction does not, and the norm is multiplied on where the gradient meets a parameter.
    """
    if weights is None:
        return u.to(dtype), None
    scale = HALF_SCALE if dtype == torch.float16 else 1.0
    norms = u.norm(dim=1)
    unit = u / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return (unit * scale).to(dtype), (norms / scale).to(weights)
