"""Slow, obvious scoring: one sample at a time, softmax in plain Python floats."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.types import ClassScores


def dampened_model(model: nn.Module, update: DampeningUpdate | None) -> nn.Module:
    """A copy with the update's erasures folded in, then its elements multiplied; a tied tensor once."""
    model = copy.deepcopy(model)
    done = set()
    for erased in update.erasures.values() if update is not None else ():
        e, state = erased.erasure, model.state_dict()
        dense = torch.eye(len(e.mean), dtype=torch.float64) - e.strength * e.a @ e.b.T
        weight, bias = state[erased.weight], state[erased.shift]
        weight.copy_((dense @ weight.flatten(1).double()).reshape(weight.shape))
        bias.copy_(dense @ (bias.double() - e.mean) + e.mean)
    for name, entry in update.entries.items() if update is not None else ():
        tensor = model.state_dict()[name]
        if tensor.data_ptr() in done:
            continue
        done.add(tensor.data_ptr())
        flat = tensor.view(-1)
        for i, factor in zip(entry.indices.tolist(), entry.factors.tolist(), strict=True):
            flat[i] = float(flat[i]) * factor
    return model


def reference_scores(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> ClassScores:
    model = copy.deepcopy(model).double().eval()
    out = ClassScores()
    for x, y in batches:
        for i, label in enumerate(y.tolist()):
            row = x[i : i + 1]
            with torch.no_grad():
                z = model(row.double() if row.is_floating_point() else row)[0].tolist()
            log_sum = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
            out.total[label] = out.total.get(label, 0) + 1
            out.correct[label] = out.correct.get(label, 0) + (z.index(max(z)) == label)
            out.loss[label] = out.loss.get(label, 0.0) + log_sum - z[label]
    return out
