"""The models of the scenarios, by name; all end in a linear head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from simulations.datasets.bundle import Inputs
from simulations.models.errors import ModelError, unknown
from simulations.models.pictures import PICTURES
from simulations.models.texts import TEXTS
from simulations.models.weights import load_weights

MODELS: dict[str, Callable[[Inputs, int, bool], nn.Module]] = {**PICTURES, **TEXTS}
"""Builders by name: of the inputs, the number of classes, and whether the small variant is wanted."""

SIZES = ("full", "small")
"""What `build` takes as size."""

__all__ = ["MODELS", "SIZES", "ModelError", "build"]


def build(
    name: str, inputs: Inputs, num_classes: int, *, size: str = "full", weights: str | Path = ""
) -> nn.Module:
    """A new model, in training mode, whose initial weights come from torch's present random state.

    Args:
        name: One of `MODELS`.
        inputs: What it is fed.
        num_classes: Number of outputs, >= 1.
        size: "full", or "small": fewer or narrower layers of the same architecture, about a million values
            or less, for one CPU core (a few hundred pictures of 32x32 a second) and many checkpoints.
        weights: A local file to take values from, see `weights.load_weights`; "": none. Nothing is ever
            downloaded.

    Raises:
        ModelError: If there is no such model, it does not take such inputs, or the weights do not fit.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if num_classes < 1:
        raise ModelError(f"a model needs at least one class, got {num_classes}")
    _check_inputs(name, inputs)
    model = MODELS[name](inputs, num_classes, size == "small")
    if weights:
        load_weights(model, Path(weights))
    return model


def _check_inputs(name: str, inputs: Inputs) -> None:
    shape = tuple(inputs.shape)
    if name in PICTURES:
        if inputs.vocabulary or len(shape) != 3:
            raise ModelError(
                f"{name} takes pictures (channels, height, width), got inputs of shape {shape} with a "
                f"vocabulary of {inputs.vocabulary}; for texts there are {', '.join(TEXTS)}"
            )
    elif inputs.vocabulary < 2 or len(shape) != 1:
        raise ModelError(
            f"{name} takes texts (tokens,) with a vocabulary of 2 ids or more, got inputs of shape {shape} "
            f"with a vocabulary of {inputs.vocabulary}; for pictures there are {', '.join(PICTURES)}"
        )
    if min(shape) < 1:
        raise ModelError(f"every dimension of the inputs must be 1 or more, got {shape}")
