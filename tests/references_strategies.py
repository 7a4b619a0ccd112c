"""Slow, obvious implementations to compare strategies' kernels with."""

from __future__ import annotations

import math

import torch


def reference_calibrated(update: list[float], stored: list[float]) -> list[float]:
    """FedEraser's ‖U‖ · Û/‖Û‖ of one tensor's values, one at a time."""
    length = math.sqrt(math.fsum(u * u for u in update))
    wanted = math.sqrt(math.fsum(s * s for s in stored))
    return [u / length * wanted for u in update] if length else list(update)


def reference_projected(point: list[float], centre: list[float], radius: float) -> list[float]:
    """The nearest point of a ball, by bisection along the line to its centre."""

    def at(share: float) -> list[float]:
        return [c + share * (p - c) for p, c in zip(point, centre, strict=True)]

    def outside(share: float) -> bool:
        return math.dist(at(share), centre) > radius

    if not outside(1.0):
        return list(point)
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if outside(middle) else (middle, high)
    return at(low)


def reference_gradient(
    model: torch.nn.Module, samples: list[tuple[torch.Tensor, int]]
) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss, one sample and one backward at a time, in float64."""
    model = model.double()
    model.zero_grad()
    for x, label in samples:
        loss = -torch.log_softmax(model(x[None].double())[0], dim=0)[label]
        loss.backward()
    return {n: p.grad / len(samples) for n, p in model.named_parameters() if p.grad is not None}
