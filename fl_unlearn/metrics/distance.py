"""Distance: how far the model's parameters are from those of the model before forgetting.

For the parameters θ of the model and θ₀ of the original: ‖θ − θ₀‖ / ‖θ₀‖, over all of them together and over
each tensor. Says where a strategy works and how much it changes, not what the model knows: a retrained model
is far away because training went another way, and one masked logit may outweigh everything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fl_unlearn.metrics.contract import Column, Metric, NotKept, Number, Subject
from fl_unlearn.types import MeasureError


def _measure(subject: Subject) -> Mapping[str, Number]:
    if isinstance(subject.original, NotKept):
        raise MeasureError(subject.original.why)
    now, before = (dict(m.named_parameters()) for m in (subject.model, subject.original))
    shapes, expected = ({n: tuple(p.shape) for n, p in model.items()} for model in (now, before))
    if shapes != expected:
        names = sorted(n for n in shapes | expected if shapes.get(n) != expected.get(n))
        raise MeasureError(f"the model and the original differ in names or shapes: {', '.join(names)}")
    moved = {n: _squares(now[n].detach().double() - before[n].detach().double()) for n in now}
    norms = {n: _squares(before[n].detach().double()) for n in now}
    if not sum(norms.values()):
        raise MeasureError("the original model's parameters are all 0, so no distance is relative to them")
    out = {"distance": Number(math.sqrt(sum(moved.values()) / sum(norms.values())), 1)}
    # A tensor that was 0 has no relative distance of its own; it counts in the sum.
    for name in (n for n in now if norms[n]):
        out[f"distance-{name}"] = Number(math.sqrt(moved[name] / norms[name]), 1)
    return out


def _squares(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())


DISTANCE = Metric(
    "distance",
    (
        Column(
            "distance",
            "parameter distance",
            "",
            "retrained",
            "Distance of all parameters from the original's, relative to their norm; a masked logit's bias "
            "alone makes it large.",
        ),
    ),
    _measure,
)
"""Also gives ``distance-<parameter>`` for each tensor, which is in no column. Every client gives the same."""
