"""Slow, obvious implementations of layer statistics and of least-squares concept erasure: dense, float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fl_unlearn.types import REST


def observations(
    model: nn.Module, layer: str, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each observation of a layer's output, one sample and position at a time, and its label."""
    rows, labels = [], []
    for i in range(len(x)):
        seen: list[torch.Tensor] = []
        module = model.get_submodule(layer)
        hook = module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.detach().clone()))
        with torch.no_grad():
            model(x[i : i + 1])
        hook.remove()
        z = seen[0][0]
        if not isinstance(module, nn.Linear):
            z = z.movedim(0, -1)
        for row in z.reshape(-1, z.shape[-1]):
            rows.append(row.double())
            labels.append(int(y[i]))
    return torch.stack(rows), torch.tensor(labels)


def sums(
    rows: torch.Tensor, labels: torch.Tensor, classes: Sequence[int], ignored: Sequence[int] = ()
) -> tuple[dict[int, int], dict[int, torch.Tensor], torch.Tensor]:
    """Counts, sums and second moments, one observation at a time."""
    d = rows.shape[1]
    counts = dict.fromkeys([*classes, REST], 0)
    total = {g: torch.zeros(d, dtype=torch.float64) for g in counts}
    second = torch.zeros(d, d, dtype=torch.float64)
    for z, label in zip(rows, labels.tolist(), strict=True):
        if label in ignored:
            continue
        g = label if label in classes else REST
        counts[g] += 1
        total[g] += z
        second += torch.outer(z, z)
    return counts, total, second


def covariance(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def class_covariance(rows: torch.Tensor, labels: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Cov(z, 1[y = c]), shape (d, k)."""
    indicator = torch.stack([(labels == c).double() for c in classes], dim=1)
    return (rows - rows.mean(0)).T @ (indicator - indicator.mean(0)) / len(rows)


def power(matrix: torch.Tensor, exponent: float, cutoff: float) -> torch.Tensor:
    """A power of a symmetric matrix; 0 where it has less than a share of its largest extent."""
    values, vectors = torch.linalg.eigh(matrix)
    powers = torch.where(values > cutoff * values[-1], values.clamp(min=1e-300) ** exponent, 0.0)
    return vectors @ torch.diag(powers) @ vectors.T


def dense_map(
    rows: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[int],
    strength: float = 1.0,
    cutoff: float = 1e-9,
) -> torch.Tensor:
    """T = I - s Sigma^(1/2) P Sigma^(-1/2), P projecting onto the whitened class covariances."""
    sigma = covariance(rows)
    root, inverse = power(sigma, 0.5, cutoff), power(sigma, -0.5, cutoff)
    whitened = inverse @ class_covariance(rows, labels, classes)
    projection = whitened @ torch.linalg.pinv(whitened)
    return torch.eye(len(sigma), dtype=torch.float64) - strength * root @ projection @ inverse


def probe_gain(rows: torch.Tensor, labels: torch.Tensor, label: int) -> float:
    """How much of the variance of 1[y = c] a least-squares probe with a constant explains, 0 to 1."""
    target = (labels == label).double()
    inputs = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    fitted = inputs @ torch.linalg.lstsq(inputs, target[:, None], driver="gelsd").solution
    left = float(((fitted[:, 0] - target) ** 2).sum())
    return 1 - left / float(((target - target.mean()) ** 2).sum())
