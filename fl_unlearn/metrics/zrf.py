"""ZRF, the zero-retrain forgetting score: does the model answer at random on what it was to forget?

Chundawat et al. 2023, "Can Bad Teaching Induce Forgetting?" (arXiv 2205.08096):
ZRF = 1 − mean over the forget set of JS(M(x), T(x)), where T is a model that was never trained. Base-2
logarithms keep it between 0 and 1; 1: the model is as ignorant as T. A retrained model generalises to samples
that it has not seen, so its value is what to compare with, not 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.metrics.outputs import distributions


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence of each row, in bits, 0 to 1; finite where probabilities are zero.

    Args:
        p: Distributions, shape (N, C), rows summing to 1.
        q: The same, of the same shape.

    Returns:
        Shape (N,): ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2.
    """
    # As an entropy difference: 0 log 0 is 0 there, and no probability is ever divided by.
    entropy: list[Tensor] = [torch.special.entr(v).sum(1) for v in ((p + q) / 2, p, q)]
    bits = (entropy[0] - (entropy[1] + entropy[2]) / 2) / math.log(2)
    return bits.clamp(0.0, 1.0)


def _measure(subject: Subject) -> Mapping[str, Number]:
    p, q = distributions((subject.model, subject.fresh), subject.forget)
    return {"zrf": Number(1.0 - float(js_divergence(p, q).mean()), len(p))} if len(p) else {}


ZRF = Metric(
    "zrf",
    (
        Column(
            "zrf",
            "ZRF",
            "",
            "retrained",
            "1 less the divergence from an untrained model's outputs on forgotten samples; 1: as ignorant.",
            1.0,
        ),
    ),
    _measure,
)
