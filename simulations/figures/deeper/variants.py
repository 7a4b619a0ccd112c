"""The ways to forget a class that the table compares: one function each.

A variant looks at the final model and gives an `Operation`, which is then applied to every checkpoint. To add
one, write a function below and decorate it; the table and the figure take the registry's order.
"""

from __future__ import annotations

from collections.abc import Callable

from .bench import Bench
from .erasing import erase
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
    return Operation(lambda state: with_row(state, label, MASKED))


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


@variant("erase + head")
def erase_head(bench: Bench, label: int) -> Operation:
    """Erasure in the last hidden layer, then FIUn on the classifier."""
    return fiun(bench, label, "head", erase(bench, label, "fc"))


@variant("erase + last block")
def erase_block(bench: Bench, label: int) -> Operation:
    """Erasure in the last hidden layer, then FIUn on that layer and the classifier."""
    return fiun(bench, label, "fc.*,head.*", erase(bench, label, "fc"))


@variant("erase in two layers + head")
def erase_two(bench: Bench, label: int) -> Operation:
    """Erasure in the last convolution and the last hidden layer, then FIUn on the classifier."""
    return fiun(bench, label, "head", erase(bench, label, "features.6,fc"))


def with_row(state: State, label: int, bias: float) -> State:
    """``state`` with zeros for the class's weights in the head, and this bias."""
    weight, biases = state["head.weight"].clone(), state["head.bias"].clone()
    weight[label], biases[label] = 0.0, bias
    return {**state, "head.weight": weight, "head.bias": biases}


def is_masked(state: State, label: int) -> bool:
    """Whether the class's row was removed: there is nothing to learn from until it is added anew."""
    return float(state["head.bias"][label]) == MASKED
