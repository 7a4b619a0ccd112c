"""Which hidden layers of a model can be erased in, and the statistics of their outputs.

An erasure holds for a layer's output. Whether it holds for the features depends on what reads that output:
where it meets values that go around the layer (a residual sum, say), what was erased comes back. So one batch
is run, and every function that reads the output is looked at, up to the next linear or convolutional layer.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from .erase import Erasure
from .erase_trace import Trace, traced
from .fisher import find_head
from .layer_stats import LAYERS, MAX_WIDTH, LayerSums
from .types import EraseError, FisherError, Signature
from .update import ErasedLayer

AUTO = "auto"
"""The layer specification that stands for the last hidden layer."""


@dataclass(frozen=True)
class Hidden:
    """A hidden layer that can be erased in, and where its erasure is folded.

    Attributes:
        layer: The layer's name in the model.
        weight: Name of the weight, whose first dimension is the layer's output.
        shift: Name of the tensor that takes the constant part.
        shift_is: ``"bias"``; or ``"running_mean"``, that of a batch normalisation right after the layer.
        width: The number of outputs.
    """

    layer: str
    weight: str
    shift: str
    shift_is: Literal["bias", "running_mean"]
    width: int


@dataclass(frozen=True)
class Statistics:
    """What one client says of one layer.

    Attributes:
        layers: All layers that are asked about, in the order of a forward pass; none from a client that has
            no data, and so cannot tell.
        sums: The statistics of the layer in question, one for each model that was sent.
    """

    layers: tuple[Hidden, ...] = ()
    sums: tuple[LayerSums, ...] = ()

    @property
    def counts(self) -> dict[int, int]:
        """Group to number of observations, in the first model."""
        return self.sums[0].counts if self.sums else {}


def folded(hidden: Hidden, erasure: Erasure, model: Signature) -> ErasedLayer:
    """An erasure as a part of an update of models with this signature.

    Raises:
        EraseError: If the model lacks one of the layer's tensors, or it has another shape.
    """
    specs = [model.get(n) for n in (hidden.weight, hidden.shift)]
    shapes = [s.shape if s is not None else None for s in specs]
    weight, shift = specs
    d = len(erasure.mean)
    if weight is None or shift is None or weight.shape[:1] != (d,) or shift.shape != (d,):
        raise EraseError(
            f"an erasure of {d} outputs does not fit {hidden.weight!r}, {hidden.shift!r} of shapes {shapes}"
        )
    return ErasedLayer(erasure, hidden.weight, hidden.shift, hidden.shift_is, weight, shift)


def find_layers(model: nn.Module, x: Any, spec: str = AUTO, *, head: str | None = None) -> list[Hidden]:
    """The layers of a specification, in the order in which a forward pass calls them.

    Args:
        model: The model.
        x: Inputs of one batch, on the model's device.
        spec: "auto": the last ``nn.Linear`` or convolution called before the head; or comma-separated names
            or glob patterns of such layers, such as "fc" or "features.*".
        head: Name of the head, where it is not the last ``nn.Linear``.

    Raises:
        EraseError: If a layer cannot be erased in, or none matches; with all reasons, and what to do.
    """
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, LAYERS)}
    trace = traced(model, layers, x)
    heads = trace.heads | _named_head(model, head)
    called = [n for n in dict.fromkeys(trace.calls) if n not in heads]
    if spec.strip() == AUTO:
        if not called:
            raise EraseError("the model calls no nn.Linear or convolution before its head to erase in")
        chosen = called[-1:]
    else:
        chosen = _matching(layers, spec, trace)
    problems, found = [], []
    for name in chosen:
        if name in heads:
            problems.append(f"{name!r} gives the logits: the head is dampened; name a layer before it")
            continue
        problem = trace.problem(name)
        hidden = None if problem else _targets(model, name, layers[name], trace)
        if isinstance(hidden, Hidden):
            found.append(hidden)
        else:
            problems.append(f"{name!r} {problem or hidden}")
    if problems:
        raise EraseError("; ".join(problems))
    return found


def _matching(layers: Mapping[str, nn.Module], spec: str, trace: Trace) -> list[str]:
    chosen: set[str] = set()
    for pattern in (p.strip() for p in spec.split(",") if p.strip()):
        names = fnmatch.filter(layers, pattern)
        if not names:
            raise EraseError(
                f"no nn.Linear or convolution of the model matches {pattern!r}; there are "
                f"{', '.join(map(repr, layers)) or 'none'}"
            )
        chosen |= set(names)
    if not chosen:
        raise EraseError("no layer is named; use 'auto', or names such as 'fc1' or 'features.*'")
    order = dict.fromkeys(trace.calls)
    return [n for n in order if n in chosen] + [n for n in layers if n in chosen and n not in order]


def _named_head(model: nn.Module, head: str | None) -> set[str]:
    try:
        return {find_head(model, head)[0]}
    except FisherError as e:
        if head is not None:
            raise EraseError(str(e)) from e
        return set()


def _targets(model: nn.Module, name: str, layer: nn.Module, trace: Trace) -> Hidden | str:
    """Where the erasure goes, or why it cannot."""
    at = f"{name}." if name else ""
    state, weight = model.state_dict(), layer.weight
    assert isinstance(weight, Tensor)
    if f"{at}weight" not in state or state[f"{at}weight"].shape != weight.shape:
        return "has a parametrised weight (weight_norm, say); remove the parametrisation first"
    if not isinstance(layer, nn.Linear) and layer.groups != 1:
        return f"is a convolution in {layer.groups} groups, which cannot mix its outputs; name another layer"
    if weight.shape[0] > MAX_WIDTH:
        return f"is {weight.shape[0]} wide, more than the {MAX_WIDTH} that statistics are taken of"
    own = [p for p in (weight, layer.bias) if p is not None]
    named = list(model.named_parameters(remove_duplicate=False))
    if any(sum(p is q for _, q in named) > 1 or trace.uses[id(p)] > 1 for p in own):
        return "shares its weight or bias with another layer, which would be changed too; untie them"
    if layer.bias is not None:
        return Hidden(name, f"{at}weight", f"{at}bias", "bias", weight.shape[0])
    mean = trace.norms.get(name)
    found = [n for n, b in model.named_buffers(remove_duplicate=False) if mean is not None and b is mean]
    if len(found) != 1 or trace.reads[name] != 1 or trace.uses[id(mean)] != 1:
        return (
            "has no bias, and is not followed by one batch normalisation alone that could take the constant "
            "part; give the layer a bias (bias=True), or name another"
        )
    return Hidden(name, f"{at}weight", found[0], "running_mean", weight.shape[0])
