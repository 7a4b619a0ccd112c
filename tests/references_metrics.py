"""Slow, obvious forms of what `fl_unlearn.metrics` computes: one sample at a time, in plain Python floats."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from statistics import fmean, variance

import torch
from references_probes import auc_by_pairs, loss_and_entropy, tpr_by_thresholds
from torch import Tensor, nn


def softmax_rows(model: nn.Module, x: Tensor) -> list[list[float]]:
    """The output distribution of every sample."""
    model, out = copy.deepcopy(model).double().eval(), []
    for row in x:
        with torch.no_grad():
            z = model(row[None].double())[0].tolist()
        top = max(z)
        e = [math.exp(v - top) for v in z]
        out.append([v / sum(e) for v in e])
    return out


def js_bits(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon divergence by its definition: two Kullback-Leibler divergences from the middle."""

    def kl(a: Sequence[float], m: Sequence[float]) -> float:
        return sum(v * math.log2(v / w) for v, w in zip(a, m, strict=True) if v > 0)

    middle = [(v + w) / 2 for v, w in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def zrf(model: nn.Module, fresh: nn.Module, x: Tensor) -> float:
    """1 less the mean divergence."""
    pairs = zip(softmax_rows(model, x), softmax_rows(fresh, x), strict=True)
    return 1 - fmean(js_bits(p, q) for p, q in pairs)


def activation_distance(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    """Mean Euclidean distance of the output distributions."""
    pairs = zip(softmax_rows(model, x), softmax_rows(original, x), strict=True)
    return fmean(math.dist(p, q) for p, q in pairs)


def attack_by_label(
    model: nn.Module, inside: tuple[Tensor, Tensor], outside: tuple[Tensor, Tensor], kind: str, least: int
) -> dict[str, float]:
    """AUC or TPR at 1 % FPR of the loss and the entropy: label by label, weighted by the members."""
    out = {}
    for i, name in enumerate(("loss", "entropy")):
        a = loss_and_entropy(model, *inside)[i]
        b = loss_and_entropy(model, *outside)[i]
        total, weight = 0.0, 0
        for label in set(inside[1].tolist()):
            own = [-v for v, y in zip(a, inside[1].tolist(), strict=True) if y == label]
            other = [-v for v, y in zip(b, outside[1].tolist(), strict=True) if y == label]
            if len(other) < least:
                continue
            value = auc_by_pairs(own, other) if kind == "auc" else tpr_by_thresholds(own, other, 0.01)
            total, weight = total + value * len(own), weight + len(own)
        out[f"mia-{name}-{kind}"] = total / weight
    return out


def logit(logits: Sequence[float], label: int) -> float:
    """log(p / (1 - p)), from the probabilities."""
    e = [math.exp(v - max(logits)) for v in logits]
    others = sum(v for c, v in enumerate(e) if c != label)
    return math.log((e[label] / sum(e)) / (others / sum(e)))


def u_lira(
    unlearned: Sequence[Sequence[float]], never: Sequence[Sequence[float]], fpr: float, pooled: bool
) -> tuple[float, float, float]:
    """Accuracy, AUC and TPR: every model attacked with Gaussians fitted to all pairs but its own."""
    members, others = [], []
    for k in range(len(unlearned)):
        fits = []
        for side in (unlearned, never):
            rest = [row for j, row in enumerate(side) if j != k]
            columns = list(zip(*rest, strict=True))
            spread = [variance(c) for c in columns]
            if pooled:
                spread = [fmean(spread)] * len(spread)
            fits.append([(fmean(c), max(s, 1e-12)) for c, s in zip(columns, spread, strict=True)])
        for side, scores in ((unlearned, members), (never, others)):
            for m, value in enumerate(side[k]):
                had, had_not = (
                    -((value - mean) ** 2) / (2 * s) - math.log(2 * math.pi * s) / 2
                    for mean, s in (fits[0][m], fits[1][m])
                )
                scores.append(had - had_not)
    right = [1.0 if s > 0 else 0.5 if s == 0 else 0.0 for s in members]
    right += [1.0 if s < 0 else 0.5 if s == 0 else 0.0 for s in others]
    return fmean(right), auc_by_pairs(members, others), tpr_by_thresholds(members, others, fpr)
