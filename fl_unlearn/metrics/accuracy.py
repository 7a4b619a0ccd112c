"""Accuracy and loss: on what was forgotten, what was kept, and what nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping

from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.types import ClassScores
from fl_unlearn.verify import score

_PARTS = {
    "forget": ("forgotten", "training samples that are to be forgotten"),
    "retain": ("retained", "training samples that are to be kept"),
    "held-forget": ("held-out, forgotten", "held-out samples of the forgotten classes"),
    "held-retain": ("held-out, retained", "held-out samples, less those of forgotten classes"),
}


def _measure(subject: Subject) -> Mapping[str, Number]:
    held = score(subject.model, subject.held_out)
    parts = {
        "forget": score(subject.model, subject.forget),
        "retain": score(subject.model, subject.retained),
        "held-forget": ClassScores() if not subject.classes else _of(held, subject.classes),
        "held-retain": held.without(subject.classes),
    }
    out = {}
    for name, scores in parts.items():
        accuracy, loss = scores.accuracy(), scores.mean_loss()
        samples = sum(scores.total.values())
        if accuracy is not None and loss is not None:
            out[f"{name}-accuracy"] = Number(accuracy, samples)
            out[f"{name}-loss"] = Number(loss, samples)
    for label, total in held.total.items():
        out[f"class-{label}"] = Number(held.correct[label] / total, total)
    return out


def _of(scores: ClassScores, classes: tuple[int, ...]) -> ClassScores:
    return scores.without([c for c in scores.total if c not in classes])


ACCURACY = Metric(
    "accuracy",
    tuple(
        Column(
            f"{key}-{kind}",
            f"{title}: {kind}",
            "%" if kind == "accuracy" else "nats",
            "retrained",
            f"{'Share classified correctly' if kind == 'accuracy' else 'Mean cross-entropy'} of {what}.",
            1.0 if kind == "accuracy" else None,
        )
        for kind in ("accuracy", "loss")
        for key, (title, what) in _PARTS.items()
    ),
    _measure,
)
"""Also gives ``class-<label>``, the accuracy on held-out samples of each class, which is in no column."""
