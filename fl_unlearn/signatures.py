"""What two models must share to share an update: names, shapes and dtypes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

StateDict = Mapping[str, torch.Tensor]
"""A model's named tensors, as ``nn.Module.state_dict()`` gives them."""

SIGNATURE_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype name (such as ``"float32"``) of one tensor of a model."""

    shape: tuple[int, ...]
    dtype: str


Signature = Mapping[str, TensorSpec]
"""Names, shapes and dtypes of a model's tensors: what two models must share to share an update."""


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without the ``torch.`` prefix."""
    return str(dtype).removeprefix("torch.")


def signature_of(state: StateDict) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of ``state``."""
    return {n: TensorSpec(tuple(t.shape), dtype_name(t.dtype)) for n, t in state.items()}


def signature_difference(expected: Signature, got: Signature) -> str | None:
    """One sentence on the first differences in names and shapes, or None when they agree.

    Dtypes may differ: Flower's strategies widen them (FedAdam returns float64 for float32 models, FedAvg
    float64 for integer buffers), so the same model changes its dtypes from round to round.
    """
    missing = sorted(set(expected) - set(got))
    extra = sorted(set(got) - set(expected))
    changed = [n for n in expected if n in got and expected[n].shape != got[n].shape]
    if not (missing or extra or changed):
        return None
    parts = []
    if missing:
        parts.append(f"missing {_some(missing)}")
    if extra:
        parts.append(f"unknown {_some(extra)}")
    for name in changed[:3]:
        parts.append(f"'{name}' is {list(got[name].shape)} where {list(expected[name].shape)} was expected")
    return "; ".join(parts)


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
