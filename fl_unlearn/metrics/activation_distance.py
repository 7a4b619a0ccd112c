"""Activation distance: how far the outputs on forgotten samples have moved from the original model's.

Golatkar et al. 2021, "Mixed-Privacy Forgetting" (arXiv 2012.13431), and Chundawat et al. 2023 (arXiv
2205.08096) take the mean L2 distance between the softmax outputs of the model and of the *retrained* one. A
client that is asked to forget has no retrained model, so the distance here is from the original, and the
retrained model's own distance is the value to come near to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.metrics.outputs import distributions


def _measure(subject: Subject) -> Mapping[str, Number]:
    now, before = distributions((subject.model, subject.original), subject.forget)
    if not len(now):
        return {}
    return {"activation-distance": Number(float((now - before).norm(dim=1).mean()), len(now))}


ACTIVATION_DISTANCE = Metric(
    "activation-distance",
    (
        Column(
            "activation-distance",
            "activation distance",
            "",
            "retrained",
            "Mean L2 distance between the model's and the original's outputs (softmax) on forgotten samples.",
            math.sqrt(2),
        ),
    ),
    _measure,
)
