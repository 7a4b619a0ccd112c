"""What the Fisher of a linear head can be, whatever the data: bounds that a made-up one may break.

For logits z = W h + b, "normalized" sends back u with |u| = 1, proportional to softmax(z) − onehot(y). With r
the softmax over the classes other than y, u_y² = 1 / (1 + |r|²) ≥ 1/2: each sample's u_y² is at least the sum
of all other u_k², and with it they add up to 1. Its squared gradients are u_k² h_j² for W and u_k² for b.

Summed over samples of one class y, row y of the Fisher therefore is, in every column, at least the sum of all
other rows; the values of b add up to the number of samples; and in sums without any sample of y, row y is at
most the sum of the others. Who wants other classes' rows large must make the class's own row as large.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from fl_unlearn.types import REST

SLACK = 1e-3
"""Relative: sums travel as float32, and logits are computed in the model's precision."""


def is_head(tensors: Mapping[str, torch.Tensor], classes: int) -> bool:
    """Whether all tensors have one row a class and are a weight, a bias or both."""
    dims = sorted(t.ndim for t in tensors.values())
    return dims in ([1], [2], [1, 2]) and all(len(t) == classes for t in tensors.values())


def head_violation(
    sums: Mapping[str, torch.Tensor], count: int, label: int, absent: Collection[int]
) -> str | None:
    """Why no data can have given these sums of the kind "normalized", or None.

    Args:
        sums: The head's summed squared gradients: weight (C, d), bias (C,) or both, as `is_head` says.
        count: Number of samples.
        label: The class of all of them, or `types.REST` for samples of several.
        absent: Classes that none of them is of.
    """
    for name, tensor in sums.items():
        rows = tensor.double().reshape(len(tensor), -1)
        total = rows.sum(0)
        room = SLACK * total
        if tensor.ndim == 1 and len(tensor) > 1 and abs(float(total) - count) > SLACK * count:
            return f"{name!r} adds up to {float(total):.6g}, which must be its {count} samples"
        if label != REST and bool((2 * rows[label] < total - room).any()):
            return f"in {name!r}, class {label}'s own values are less than all other classes'"
        for other in set(absent) - {label}:
            if bool((2 * rows[other] > total + room).any()):
                return f"{name!r} has more for class {other} than for all others, and no sample of it"
    return None
