"""U-LiRA: the likelihood-ratio attack on unlearned samples, from shadow models.

Hayes et al. 2024, "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy"
(arXiv 2403.01218), after LiRA (Carlini et al. 2022, arXiv 2112.03570). For every sample two kinds of models
are trained: such that had it and then unlearned it, and such that never had it. A Gaussian is fitted to
either kind's φ(p) = log(p / (1 − p)), p being the probability of the sample's label, and a further model is
taken for one that had the sample where the first density is the larger. 0.5 is guessing; there the strategy
leaves the sample no trace that this attack finds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_unlearn.membership import threshold_attack
from fl_unlearn.types import MeasureError

LEAST = 4
"""Shadow models a side below which there is no attack: a fit from fewer than 3 says nothing."""

POOLED_BELOW = 64
"""Shadow models a side below which all samples share a side's variance (as Carlini et al. 2022 advise)."""


@dataclass(frozen=True)
class ULira:
    """What the attack achieved.

    Attributes:
        accuracy: Share of right decisions where the likelihoods decide, ties counting half; 0.5: guessing.
        auc: Area under the ROC curve of the likelihood ratio; 0.5: guessing.
        tpr: Share of unlearned samples recognised when at most ``fpr`` of the others are taken for such.
        fpr: That bound.
        shadows: Shadow models a side.
        samples: Samples attacked, each in every shadow model.
    """

    accuracy: float
    auc: float
    tpr: float
    fpr: float
    shadows: int
    samples: int


def logit_scaled(logits: Tensor, labels: Tensor) -> Tensor:
    """φ(p) = log(p / (1 − p)) of the probability p of each row's label; finite wherever the logits are.

    Args:
        logits: Shape (N, C), C >= 2.
        labels: Shape (N,), int64, below C.

    Returns:
        Shape (N,), float64: the label's logit less the log-sum-exp of all others.
    """
    z, column = logits.double(), labels[:, None]
    own = z.gather(1, column).squeeze(1)
    return own - z.scatter(1, column, -torch.inf).logsumexp(1)


def u_lira(unlearned: Tensor, never: Tensor, *, fpr: float = 0.01, pooled: bool | None = None) -> ULira:
    """The attack, on every shadow model in turn, with Gaussians fitted to the others.

    Shadow models come in pairs, one of either kind for every sample; a pair is left out of the fits that
    score it. (Were one model left out alone, its kind would be fitted to fewer values than the other, and
    that difference would betray it.)

    Args:
        unlearned: φ in the models that had the sample and unlearned it, shape (K, M): K models a sample, M
            samples; K >= `LEAST`.
        never: φ in the models that never had it, the same shape; row k is the partner of the other's row k.
        fpr: Bound on the false-positive rate, in (0, 1]; K · M >= 1 / ``fpr``.
        pooled: Whether a side's variance is shared by all samples; None: where K < `POOLED_BELOW`.

    Raises:
        MeasureError: If there are too few shadow models or samples, shapes differ or values are not finite.
    """
    if unlearned.ndim != 2 or unlearned.shape != never.shape:
        raise MeasureError(
            f"both sides need the shape (shadow models, samples), got {list(unlearned.shape)} and "
            f"{list(never.shape)}"
        )
    shadows, samples = unlearned.shape
    if shadows < LEAST:
        raise MeasureError(f"U-LiRA needs at least {LEAST} shadow models a side, got {shadows}; train more")
    sides = [side.double().cpu() for side in (unlearned, never)]
    if not all(bool(side.isfinite().all()) for side in sides):
        raise MeasureError("the shadow models' confidences must be finite; has one diverged?")
    share = shadows < POOLED_BELOW if pooled is None else pooled
    fits = [_left_out_fits(side, share) for side in sides]
    had, had_not = (_density(side, *fits[0]) - _density(side, *fits[1]) for side in sides)
    attack = threshold_attack(had.flatten(), had_not.flatten(), fpr=fpr)
    right = 0.5 * (1 + (had.sign().mean() - had_not.sign().mean()) / 2)
    return ULira(float(right), attack.auc, attack.tpr, fpr, shadows, samples)


def _left_out_fits(values: Tensor, pooled: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column without row k, for every k; both of shape (K, M)."""
    rest = torch.stack([torch.cat([values[:k], values[k + 1 :]]) for k in range(len(values))])
    variance = rest.var(1)
    if pooled:
        variance = variance.mean(1, keepdim=True).expand_as(variance)
    # Models that do not differ at all have no variance; what little they differ by decides nothing.
    return rest.mean(1), variance.clamp_min(1e-12)


def _density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())
