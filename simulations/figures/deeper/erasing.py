"""Erasure in hidden layers as the product serves it: statistics of all data, layer by layer, a map each."""

from __future__ import annotations

import torch
from torch import nn

from fl_unlearn.dampen import apply_update
from fl_unlearn.erase import erasure
from fl_unlearn.erase_layers import find_layers, folded
from fl_unlearn.layer_stats import LayerSums, layer_sums
from fl_unlearn.types import signature_of
from fl_unlearn.update import DampeningUpdate, ErasedLayer

from .bench import Bench, in_batches
from .fiun import Operation
from .train import State


def erase(bench: Bench, label: int, layers: str) -> Operation:
    """Erase class ``label`` from the output of hidden layers, made from the final model.

    Args:
        bench: The federation.
        label: The class.
        layers: Which, as for `erase_layers.find_layers`.
    """
    found: dict[str, ErasedLayer] = {}
    few = bench.train.images[:2]
    for hidden in find_layers(bench.model(bench.final), few, layers):
        made = erasure(_statistics(bench, erased(bench.final, found), hidden.layer, label), [label])
        found[hidden.layer] = folded(hidden, made, signature_of(bench.final))
    return Operation(lambda state: erased(state, found))


def erased(state: State, layers: dict[str, ErasedLayer]) -> State:
    """The model after these erasures."""
    return apply_update(state, DampeningUpdate({}, 1.0, 1.0, dict(layers)))


def _statistics(bench: Bench, state: State, layer: str, label: int) -> LayerSums:
    model: nn.Module = bench.model(state)
    with torch.no_grad():
        if layer == "fc":  # what comes before it is the same in every variant, and known
            return layer_sums(bench.tail(state), bench.rows(state, bench.train), [layer], [label])[layer]
        return layer_sums(model, in_batches(bench.train), [layer], [label])[layer]
