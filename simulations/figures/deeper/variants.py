"""The ways to forget a class that the table compares: one function each.

A variant looks at the final model and gives an `Operation`, which is then applied to every checkpoint. To add
one, write a function below and decorate it; the table and the figure take the registry's order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .bench import Bench
from .fiun import Operation, fiun
from .train import State

Variant = Callable[[Bench, int], Operation]

VARIANTS: dict[str, Variant] = {}
"""Name to variant, in the order of the table."""

MASKED = -1e4
"""Bias of a logit that is never to win: finite, so that losses stay so."""


def variant(name: str) -> Callable[[Variant], Variant]:
    """Decorator that adds a variant to the table under ``name``."""

    def add(function: Variant) -> Variant:
        VARIANTS[name] = function
        return function

    return add


@variant("original")
def original(bench: Bench, label: int) -> Operation:
    """Nothing is done."""
    return Operation(lambda state: dict(state))


@variant("mask the logit")
def mask(bench: Bench, label: int) -> Operation:
    """The class's row of the head is removed: no data, no Fisher."""

    def apply(state: State) -> State:
        weight, bias = state["head.weight"].clone(), state["head.bias"].clone()
        weight[label], bias[label] = 0.0, MASKED
        return {**state, "head.weight": weight, "head.bias": bias}

    return Operation(apply)


@variant("FIUn: head")
def head(bench: Bench, label: int) -> Operation:
    """FIUn on the classifier."""
    return fiun(bench, label, "head")


@variant("FIUn: last block")
def last_block(bench: Bench, label: int) -> Operation:
    """FIUn on the last hidden layer and the classifier."""
    return fiun(bench, label, "fc.*,head.*")


@variant("FIUn: all layers")
def all_layers(bench: Bench, label: int) -> Operation:
    """FIUn on everything."""
    return fiun(bench, label, "all")


def reopened(state: State) -> State:
    """``state`` with removed rows of the head added anew, as all zeros: where relearning has to start."""
    removed = (state["head.weight"] == 0).all(1) & (state["head.bias"] == MASKED)
    return {**state, "head.bias": torch.where(removed, 0.0, state["head.bias"])}
