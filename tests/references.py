"""Slow, obvious implementations to compare the library with."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

REST = -1


def reference_fisher(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    kind: str,
    names: Iterable[str],
    keep_classes: Collection[int] | None = None,
) -> tuple[dict[int, dict[str, Tensor]], dict[int, int]]:
    """Summed squared gradients and counts by group: a float64 copy, one sample and one backward at a time."""
    model = copy.deepcopy(model).double()
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {n: named[n] for n in names}
    sums: dict[int, dict[str, Tensor]] = {}
    counts: dict[int, int] = {}

    def add(group: int, squares: dict[str, Tensor], count: int) -> None:
        total = sums.setdefault(group, {n: torch.zeros_like(p) for n, p in parameters.items()})
        for n, s in squares.items():
            total[n] = (total[n] + s).detach()
        counts[group] = counts.get(group, 0) + count

    for x, y in batches:
        if x.is_floating_point():
            x = x.double()
        labels = y.tolist()
        groups = [c if keep_classes is None or c in keep_classes else REST for c in labels]
        if kind == "batch":
            for group in set(groups):
                rows = [i for i, g in enumerate(groups) if g == group]
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows].long())
                add(group, {n: g**2 for n, g in _gradient(loss, parameters).items()}, 1)
            continue
        for i, group in enumerate(groups):
            add(group, _of_one_sample(model, x[i : i + 1], labels[i], kind, parameters), 1)
    return sums, counts


def _of_one_sample(
    model: nn.Module, x: Tensor, label: int, kind: str, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    z = model(x)[0]
    log_p = nn.functional.log_softmax(z, 0)
    p = log_p.detach().exp()
    if kind == "true":
        out = {n: torch.zeros_like(t) for n, t in parameters.items()}
        for c in range(len(z)):
            for n, g in _gradient(log_p[c], parameters).items():
                out[n] = out[n] + p[c] * g**2
        return out
    squares = {n: g**2 for n, g in _gradient(log_p[label], parameters).items()}
    if kind == "normalized":
        norm = ((p - nn.functional.one_hot(torch.tensor(label), len(z))) ** 2).sum()
        return {n: s / norm for n, s in squares.items()}
    return squares


def _gradient(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(parameters.items(), grads, strict=True)
    }
