"""Linear probe: whether the features still tell the forgotten classes apart, whatever the head says.

Each client fits a linear classifier (Alain and Bengio 2016, arXiv 1610.01644; `fl_unlearn.probes`) to the
head's inputs for its own training samples, those to be forgotten included, and tests it on its held-out
samples. A retrained model's features tell classes apart that it never saw, so its value is what good means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

import torch

from fl_unlearn.fisher import find_head
from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.metrics.drawing import LEAST, first_of_each_class
from fl_unlearn.probes import features, linear_probe
from fl_unlearn.types import FisherError, MeasureError

MOST = 100
"""Training samples of a class that a probe is fitted to, at most."""


def _measure(subject: Subject) -> Mapping[str, Number]:
    if not subject.classes:
        raise MeasureError("the request names no classes, so a probe has none to look for")
    try:
        find_head(subject.model, subject.head)
    except FisherError as e:
        raise MeasureError(str(e)) from e
    train = first_of_each_class(chain(subject.forget, subject.retained), MOST)
    known = Counter(label for _, y in train for label in y.tolist())
    wanted = [c for c in subject.classes if known[c] >= LEAST]
    if not wanted or not known.keys() - set(subject.classes):
        raise MeasureError(
            f"a probe needs at least {LEAST} training samples of a forgotten class, and samples of others; "
            f"a client has {', '.join(str(known[c]) for c in subject.classes)}"
        )
    fitted = features(subject.model, train, head=subject.head)
    h, labels = features(subject.model, subject.held_out, head=subject.head)
    tested = torch.isin(labels, fitted[1])
    right = linear_probe(*fitted, h[tested], labels[tested])
    counts = Counter(labels[tested].tolist())
    out = {}
    for key, classes in (
        ("probe-forget", [c for c in right if c in wanted]),
        ("probe-retain", [c for c in right if c not in subject.classes]),
    ):
        if samples := sum(counts[c] for c in classes):
            out[key] = Number(sum(right[c] * counts[c] for c in classes) / samples, samples)
    return out


_ABOUT = (
    "Held-out accuracy, on {}, of a linear classifier fitted to the features; a retrained model's features "
    "tell apart classes that it never saw, too."
)

PROBE = Metric(
    "probe",
    tuple(
        Column(f"probe-{key}", f"probe: {title}", "%", "retrained", _ABOUT.format(classes), 1.0)
        for key, title, classes in (
            ("forget", "forgotten", "the forgotten classes"),
            ("retain", "retained", "all other classes"),
        )
    ),
    _measure,
)
