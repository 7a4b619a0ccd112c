"""Backdoor: how often a planted trigger still has its effect.

A client that is to be forgotten trained on samples with a trigger under a label of its choice (Gu et al.
2017, arXiv 1708.06733). The success rate is the share of held-out samples of other classes that the model
gives that label once they carry the trigger. A model that never saw it gives the label by mistake now and
then: that share, not 0, is what forgetting should reach.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.types import MeasureError
from fl_unlearn.verify import score


def _measure(subject: Subject) -> Mapping[str, Number]:
    scores = score(subject.model, subject.triggered)
    success = scores.accuracy()
    if success is None:
        raise MeasureError("no trigger was planted, so there is no backdoor to test")
    return {"backdoor-success": Number(success, sum(scores.total.values()))}


BACKDOOR = Metric(
    "backdoor",
    (
        Column(
            "backdoor-success",
            "backdoor: success",
            "%",
            "retrained",
            "Share of held-out samples with the planted trigger that get the label it is to cause; a model "
            "that never saw it gives it to some by mistake.",
            1.0,
        ),
    ),
    _measure,
)
