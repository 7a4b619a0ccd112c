"""Membership inference: can an attacker tell the forgotten samples from samples that nobody trained on?

Two attacks that threshold one number a sample, the loss (Yeom et al. 2018, arXiv 1709.01604) and the entropy
of the prediction (Salem et al. 2019, arXiv 1806.01246). Members are the client's forgotten training samples.
Non-members are its held-out samples, and a member is compared only with those of its own label (thresholds
per class: Song and Mittal 2021, arXiv 2003.10595): otherwise a class that the model finds easy, and of which
the forget set has more than the held-out samples do, would pass for membership. For a forgotten class that
means the held-out samples of this class; for a client or samples, the forget set's label mix.

For a model that never saw the samples both kinds look alike: 0.5 in expectation. What to compare with is the
retrained model's value, for held-out and training samples may differ in other ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fl_unlearn.membership import statistics, threshold_attack
from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.types import MeasureError

FPR = 0.01
"""False-positive rate at which the true-positive rate is taken (Carlini et al. 2022, arXiv 2112.03570)."""

LEAST = 100
"""Non-members of one label without which the true-positive rate at `FPR` means nothing: 1 / `FPR`."""

_ATTACKS = ("loss", "entropy")


def _measure(subject: Subject, kind: str, least: int) -> Mapping[str, Number]:
    """Mean over the labels of the forget set, weighted by their members; those with too few are left out."""
    inside, labels = statistics(subject.model, subject.forget)
    if not len(labels):
        return {}
    outside, other = statistics(subject.model, subject.held_out)
    present = torch.unique(labels).tolist()
    counts = {c: int((other == c).sum()) for c in present}
    used = [c for c in present if counts[c] >= least]
    if not used:
        found = ", ".join(f"{n} of class {c}" for c, n in counts.items())
        raise MeasureError(
            f"it needs {least} held-out samples of a forgotten sample's class at a client, there are {found}"
        )
    members = sum(int((labels == c).sum()) for c in used)
    out = {}
    for name in _ATTACKS:
        total = 0.0
        for c in used:
            a, b = -inside[name][labels == c], -outside[name][other == c]
            attack = threshold_attack(a, b, fpr=FPR if kind == "tpr" else 1.0)
            total += (attack.tpr if kind == "tpr" else attack.auc) * len(a)
        out[f"mia-{name}-{kind}"] = Number(total / members, members)
    return out


def _of(kind: str, least: int) -> Callable[[Subject], Mapping[str, Number]]:
    return lambda subject: _measure(subject, kind, least)


AUC = Metric(
    "membership-auc",
    tuple(
        Column(
            f"mia-{name}-auc",
            f"membership by {name}: AUC",
            "",
            "retrained",
            f"Chance that a forgotten sample has a lower {name} than a held-out one of its class.",
            1.0,
        )
        for name in _ATTACKS
    ),
    _of("auc", 1),
)
"""Area under the ROC curve."""

TPR = Metric(
    "membership-tpr",
    tuple(
        Column(
            f"mia-{name}-tpr",
            f"membership by {name}: TPR at 1 % FPR",
            "%",
            "retrained",
            f"Forgotten samples recognised by a low {name} when at most 1 % of held-out ones of a class are.",
            1.0,
        )
        for name in _ATTACKS
    ),
    _of("tpr", LEAST),
)
"""A metric of its own, for it needs more samples: where they are too few, the table shows why."""
