"""Relearning time: how many steps bring back what was forgotten.

After Golatkar et al. 2020 (arXiv 1911.04933) and Tarun et al. 2021 (arXiv 2111.08947): a copy of the model is
trained by SGD on a few of the client's own samples, and the steps are counted until the forget accuracy is
back at 0.95 of the original's. What was only hidden comes back sooner than what was never known: good is the
retrained model's number.

- Learned from: up to 20 samples of each class, of those to be forgotten and of those to be kept. Equal
  shares, because a mix that is half of one class is soon answered with that class alone, whatever the
  features are.
- Looked at: for classes, the client's *held-out* samples of them: knowing the class again, not 20 samples by
  heart. A client's samples, or single ones, have no held-out counterpart (everybody's are like them); there
  the forgotten samples of the mix are looked at: learning them by heart again.
- Forgotten classes start from zeros in the head, whatever the model. A masked logit has no gradient and would
  never be learned, while whoever has the model can add the row anew. So this asks for the features, and a
  masked model's number is exactly the original's.
- SGD: lr 0.02, momentum 0.9, 32 samples a step, a look every 2 steps, at most 60. Chosen by measuring, so
  that retraining stands out; one federation of five clients each: CIFAR-10, class 0: masked 24.8, fine-tuned
  24.3, retrained 37.2; digits, class 3: original and masked 6.6, retrained 12.8. A larger lr (0.05) brings
  them nearer.
- A client that does not get there in 60 counts as 60, and in ``relearn-capped``.
- For single samples it says little where the retrained model is right about them anyway: on digits, 0 steps.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from fl_unlearn.batches import device_of, seeded
from fl_unlearn.fisher import find_head
from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.metrics.drawing import LEAST, Batches, first_of_each_class, joined, only
from fl_unlearn.probes import relearning_time
from fl_unlearn.types import FisherError, MeasureError
from fl_unlearn.verify import score

SAMPLES, STEPS, EVERY = 20, 60, 2
"""Samples of each class in the mix; the cap; steps from one look to the next."""

LR, MOMENTUM, BATCH = 0.02, 0.9, 32
"""Of SGD."""

SHARE = 0.95
"""The part of the original's accuracy that counts as relearned."""


def _measure(subject: Subject) -> Mapping[str, Number]:
    forgotten = first_of_each_class(subject.forget, SAMPLES)
    if not forgotten:
        raise MeasureError("there is no sample to be forgotten, so there is none to relearn from")
    mix = joined(forgotten + first_of_each_class(subject.retained, SAMPLES))
    looked_at: Batches = forgotten
    if subject.classes:
        owned = Counter(label for _, y in forgotten for label in y.tolist())
        if not (enough := [c for c in subject.classes if owned[c] >= LEAST]):
            raise MeasureError(
                f"relearning needs at least {LEAST} training samples of a forgotten class; a client has "
                f"{', '.join(str(owned[c]) for c in subject.classes)}"
            )
        looked_at = only(subject.held_out, enough)
    samples = sum(len(y) for _, y in looked_at)
    before = score(subject.original, looked_at).accuracy()
    if not before:
        raise MeasureError(
            "the original model gets none of the forgotten samples right that relearning is tested on, or "
            "there are none"
        )
    with seeded(subject.seed, device_of(subject.model)):  # dropout draws
        steps = relearning_time(
            _with_fresh_rows(subject.model, subject.classes, subject.head),
            mix,
            looked_at,
            SHARE * before,
            most=STEPS,
            every=EVERY,
            lr=LR,
            momentum=MOMENTUM,
            batch=BATCH,
            seed=subject.seed,
        )
    return {
        "relearn-steps": Number(STEPS if steps is None else steps, samples),
        "relearn-capped": Number(float(steps is None), samples),
    }


def _with_fresh_rows(model: nn.Module, classes: tuple[int, ...], name: str | None) -> nn.Module:
    """A copy whose head has zeros for these classes; the model itself where there are none."""
    if not classes:
        return model
    fresh = copy.deepcopy(model)
    try:
        _, head = find_head(fresh, name)
    except FisherError as e:
        raise MeasureError(str(e)) from e
    with torch.no_grad():
        for parameter in head.parameters():
            parameter[list(classes)] = 0.0
    return fresh


RELEARNING = Metric(
    "relearning",
    (
        Column(
            "relearn-steps",
            "relearning: steps",
            "steps",
            "retrained",
            f"Steps of SGD on a few samples until the forget accuracy is back at {SHARE:g} of the "
            f"original's; {STEPS} where it was not by then. Features that still know it take fewer than "
            "retrained ones.",
            STEPS,
        ),
        Column(
            "relearn-capped",
            "relearning: not reached",
            "%",
            "retrained",
            f"Share of clients, by samples, where it was not back after {STEPS} steps.",
            1.0,
        ),
    ),
    _measure,
)
