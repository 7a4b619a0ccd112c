"""The entropy attack of Chundawat et al. 2023 (arXiv 2205.08096), after Golatkar et al. 2020.

A support vector classifier (RBF kernel, C = 3, gamma = 1 / number of features = 1) learns from the entropy of
the model's output to tell retained training samples from held-out ones; the metric is the share of the
forgotten samples that it then calls members. It is trained on as many samples of either kind, of each label
alike, so that neither their numbers nor their labels decide; a forgotten class, which has no retained sample,
is in neither. It is a weak attack, and where the entropies of the two kinds hardly differ its answer is
nearly arbitrary: compare with the retrained model's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fl_unlearn.membership import statistics
from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.types import MeasureError

LEAST = 20
"""Training samples of the attack, of either kind, below which it is not tried."""

MOST = 2000
"""The same, above which no more are used: training time grows with their square."""


def balanced(first: Tensor, second: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions in two lists of labels, drawn at random, as many of each label in both.

    Args:
        first: Labels, shape (N,).
        second: Labels, shape (M,).
        most: At most this many of either; labels keep their shares, rounded down.
        seed: Of the draw.

    Returns:
        Positions in ``first`` and in ``second``, of the same length.
    """
    generator = torch.Generator().manual_seed(seed)
    both = [c for c in torch.unique(first).tolist() if bool((second == c).any())]
    common = {c: min(int((first == c).sum()), int((second == c).sum())) for c in both}
    share = min(1.0, most / max(1, sum(common.values())))
    out = []
    for labels in (first, second):
        order = torch.randperm(len(labels), generator=generator)
        rows = [order[labels[order] == c][: int(share * n)] for c, n in common.items()]
        out.append(torch.cat([torch.zeros(0, dtype=torch.int64), *rows]))
    return out[0], out[1]


def _classifier() -> Any:
    try:
        from sklearn.svm import SVC
    except ImportError as e:
        raise MeasureError(
            "it needs scikit-learn, which is not installed; install it with: pip install 'fl-unlearn[sim]'"
        ) from e
    return SVC(C=3, gamma="auto", kernel="rbf")


def _measure(subject: Subject) -> Mapping[str, Number]:
    classifier = _classifier()
    asked = statistics(subject.model, subject.forget)[0]["entropy"]
    if not len(asked):
        return {}
    members, labels = statistics(subject.model, subject.retained)
    others, other_labels = statistics(subject.model, subject.held_out)
    if not len(labels):
        raise MeasureError(
            "a client of which everything is to be forgotten has no members to train the attack on"
        )
    a, b = balanced(labels, other_labels, MOST, subject.seed)
    if len(a) < LEAST:
        raise MeasureError(
            f"it needs {LEAST} retained samples and as many held-out ones of the same classes, {len(a)} match"
        )
    x = torch.cat([members["entropy"][a], others["entropy"][b]])
    y = torch.cat([torch.ones(len(a)), torch.zeros(len(b))])
    classifier.fit(x[:, None].numpy(), y.numpy())
    called = torch.from_numpy(classifier.predict(asked[:, None].numpy()))
    return {"mia-svc": Number(float(called.double().mean()), len(asked))}


ENTROPY_SVC = Metric(
    "entropy-svc",
    (
        Column(
            "mia-svc",
            "membership by entropy SVC",
            "%",
            "retrained",
            "Share of forgotten samples that a classifier of output entropies takes for training samples.",
            1.0,
        ),
    ),
    _measure,
)
