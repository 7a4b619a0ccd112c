"""Sums of squared gradients that one sample can change only so much, as differential privacy needs them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fl_unlearn.batches import answer_of, buffers_kept, check_logits, take_rows, to_device, unpack
from fl_unlearn.types import REST, FisherError

from .scope import check_model, find_parameters
from .sums import FisherSums

CLIPPED_KINDS = ("empirical", "normalized")


def clipped_fisher(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    clip: float,
    keep_classes: Collection[int],
    num_classes: int,
    kind: str = "normalized",
    scope: str = "head",
    head: str | None = None,
    device: torch.device | str = "cpu",
) -> FisherSums:
    """As `fisher_diagonal`, with each sample's squared gradient scaled to an L2 norm of at most ``clip``.

    The norm is over all parameters in scope together. One forward and one backward pass for each sample.

    Args:
        model: In eval mode; see `FisherCollector`.
        loader: Batches as `batches.unpack` takes them.
        clip: The largest norm, > 0.
        keep_classes: Classes with sums of their own; all others are pooled under `types.REST`.
        num_classes: Number of logits.
        kind: "empirical" or "normalized".
        scope: Which parameters; see `resolve_scope`.
        head: Name of the head, where it is not the last ``nn.Linear``.
        device: Where the model is.

    Raises:
        FisherError: If the model, the arguments or the data do not allow it.
    """
    if kind not in CLIPPED_KINDS:
        raise FisherError(f"with noise, kind must be one of {', '.join(CLIPPED_KINDS)}; got {kind!r}")
    names, problems = find_parameters(model, scope, head)
    check_model(model, names, problems)
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {n: named[n] for n in names}
    keep = sorted(set(keep_classes))
    zeros = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in parameters.items()}
    sums = {g: {n: t.clone() for n, t in zeros.items()} for g in (*keep, REST)}
    counts = dict.fromkeys(sums, 0)
    with buffers_kept(model), torch.enable_grad():
        for i, batch in enumerate(loader):
            x, y = unpack(batch)
            x, y = to_device(x, device), y.to(device)
            for row in range(len(y)):
                z = answer_of(model, take_rows(x, slice(row, row + 1)))
                check_logits(z, y[row : row + 1], num_classes, f"batch {i}")
                squares = _squares(z[0], int(y[row]), kind, parameters)
                norm = math.sqrt(sum(float((s**2).sum()) for s in squares.values()))
                scale = min(1.0, clip / norm) if norm > 0 else 1.0
                group = int(y[row]) if int(y[row]) in counts else REST
                counts[group] += 1
                for n, s in squares.items():
                    sums[group][n] += scale * s.cpu()
    return FisherSums(kind, scope, num_classes, sums, counts)


def _squares(z: Tensor, label: int, kind: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One sample's squared gradient of its log-likelihood, for "normalized" by the squared error of p."""
    distinct = {id(p): p for p in parameters.values()}
    log_p = nn.functional.log_softmax(z.double(), 0)
    grads = torch.autograd.grad(log_p[label], list(distinct.values()), allow_unused=True)
    by_id = dict(zip(distinct, grads, strict=True))
    divisor = 1.0
    if kind == "normalized":
        error = log_p.detach().exp()
        error[label] -= 1
        divisor = float((error**2).sum())
    return {
        n: torch.zeros_like(p, dtype=torch.float64)
        if (g := by_id[id(p)]) is None or divisor == 0
        else g.detach().double() ** 2 / divisor
        for n, p in parameters.items()
    }
