"""Membership inference: does a model betray which samples of a class it was trained on?

Compare with a model that was retrained without the class: for it neither group was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_unlearn.batches import check_logits, device_of, evaluating, filled, to_device
from fl_unlearn.types import MeasureError


@dataclass(frozen=True)
class Attack:
    """How well one threshold attack tells members from non-members.

    Attributes:
        auc: Probability that a random member looks more like one than a random non-member, ties counting
            half; 0.5 is guessing.
        tpr: Largest share of members recognised by a threshold that takes at most ``fpr`` of the non-members
            for members.
        fpr: That bound.
        members: Number of members.
        non_members: Number of non-members.
    """

    auc: float
    tpr: float
    fpr: float
    members: int
    non_members: int


def membership_inference(
    model: nn.Module,
    members: Iterable[Any],
    non_members: Iterable[Any],
    *,
    fpr: float = 0.01,
    device: torch.device | str | None = None,
) -> dict[str, Attack]:
    """Attacks that take a sample for a member where the model's loss, or entropy, on it is low.

    By loss after Yeom et al. 2018 (arXiv 1709.01604), by entropy after Salem et al. 2019 (arXiv 1806.01246);
    the true-positive rate at a small false-positive rate as Carlini et al. 2022 (arXiv 2112.03570) ask for.
    For a forgotten class: its training samples against its test samples.

    Args:
        model: A classifier.
        members: Batches of samples that were trained on, at least one sample.
        non_members: Batches of samples that were not, at least 1 / ``fpr``.
        fpr: False-positive rate at which the true-positive rate is taken, in (0, 1].
        device: Where the model is; None: that of its first parameter.

    Returns:
        The attacks by name, "loss" and "entropy".

    Raises:
        MeasureError: If there are too few samples to measure on.
    """
    inside, outside = (statistics(model, batches, device=device)[0] for batches in (members, non_members))
    return {name: threshold_attack(-inside[name], -outside[name], fpr=fpr) for name in inside}


def threshold_attack(members: Tensor, non_members: Tensor, *, fpr: float = 0.01) -> Attack:
    """The best that thresholds on one number a sample can do; samples of one value come together.

    Args:
        members: The number of each member, higher for likelier members, shape (N,), not NaN.
        non_members: The same of the non-members, shape (M,), M >= 1 / ``fpr``.
        fpr: Bound on the false-positive rate, in (0, 1].

    Raises:
        MeasureError: If there are too few samples, ``fpr`` is out of range, or a value is NaN.
    """
    if not 0 < fpr <= 1:
        raise MeasureError(f"fpr must lie in (0, 1], got {fpr!r}")
    least = math.ceil(1 / fpr - 1e-9)
    if len(members) < 1 or len(non_members) < least:
        raise MeasureError(
            f"a false-positive rate of {fpr:g} needs at least {least} non-members and one member, got "
            f"{len(non_members)} and {len(members)}; give more samples or a larger fpr"
        )
    a, b = members.double().cpu(), non_members.double().cpu()
    if bool(a.isnan().any()) or bool(b.isnan().any()):
        raise MeasureError("an attack's numbers must not be NaN; has the model diverged?")
    values, rank = torch.unique(torch.cat([a, b]), return_inverse=True)
    # Samples per distinct value, highest value first: running totals are the points of the ROC curve.
    hits, alarms = (
        torch.bincount(r, minlength=len(values)).flip(0) for r in (rank[: len(a)], rank[len(a) :])
    )
    true, false = hits.cumsum(0), alarms.cumsum(0)
    wins = (hits * (len(b) - false)).sum() + 0.5 * (hits * alarms).sum()
    allowed = true[false <= math.floor(fpr * len(b) + 1e-9)]
    return Attack(
        auc=float(wins) / (len(a) * len(b)),
        tpr=int(allowed.max()) / len(a) if len(allowed) else 0.0,
        fpr=fpr,
        members=len(a),
        non_members=len(b),
    )


def statistics(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """What the attacks look at: "loss", the cross-entropy, and "entropy" of the prediction, in nats.

    Args:
        model: A classifier; it is evaluated in eval mode.
        loader: Batches as `batches.unpack` takes them; empty ones are skipped.
        device: Where the model is; None: that of its first parameter.

    Returns:
        The numbers by name, float64 of shape (N,), and the labels, int64 of shape (N,), on the CPU.
    """
    where = device_of(model, device)
    losses, entropies = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    labels = [torch.empty(0, dtype=torch.int64)]
    with evaluating(model):
        for i, (x, y) in enumerate(filled(loader)):
            z = model(to_device(x, where))
            check_logits(z, y, None, f"batch {i}")
            z, y = z.double().cpu(), y.cpu()
            losses.append(functional.cross_entropy(z, y, reduction="none"))
            entropies.append(torch.special.entr(z.softmax(1)).sum(1))
            labels.append(y)
    return {"loss": torch.cat(losses), "entropy": torch.cat(entropies)}, torch.cat(labels)
