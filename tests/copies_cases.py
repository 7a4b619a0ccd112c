"""Models as clients keep them: one small model, updates of it, and files in every format."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch

from fl_unlearn.dampen import DampeningUpdate, Entry
from fl_unlearn.erase import Erasure
from fl_unlearn.signatures import Signature, signature_of
from fl_unlearn.update import ErasedLayer

State = dict[str, torch.Tensor]
SHAPES = {"conv.weight": (6, 4, 3, 3), "bn.running_mean": (6,), "head.weight": (5, 6), "head.bias": (5,)}


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    g = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(s, generator=g).to(dtype) for n, s in SHAPES.items()}
    return {**state, "steps": torch.tensor(3)}


SIGNATURE: Signature = signature_of(model())


def update(seed: int = 0, erases: bool = False) -> DampeningUpdate:
    """Halves and removes some of the head; ``erases``: changes the hidden layer before."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.randperm(30, generator=g)[:7].sort().values.int()
    entries = {
        "head.weight": Entry(indices, torch.rand(7, generator=g), SIGNATURE["head.weight"]),
        "head.bias": Entry(torch.tensor([seed % 5]), torch.tensor([0.0]), SIGNATURE["head.bias"]),
    }
    if not erases:
        return DampeningUpdate(entries, 5.0 + seed)
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64, generator=g))[0]
    made = Erasure(basis, basis.clone(), torch.randn(6, dtype=torch.float64, generator=g), 0.5)
    where = ("conv.weight", "bn.running_mean", "running_mean")
    layer = ErasedLayer(made, *where, SIGNATURE[where[0]], SIGNATURE[where[1]])
    return DampeningUpdate(entries, 5.0 + seed, 1.0, {"conv": layer})


def by_number(update: DampeningUpdate) -> DampeningUpdate:
    """The update of an app that sends plain lists of arrays."""
    return update.renamed({n: str(i) for i, n in enumerate(SIGNATURE)})


def as_torch(state: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    torch.save(OrderedDict(state), out)
    return out.getvalue()


def as_safetensors(state: State) -> bytes:
    return safetensors.torch.save(state, metadata={"format": "pt", "by": "somebody"})


FORMATS: dict[str, Callable[[State], bytes]] = {"torch": as_torch, "safetensors": as_safetensors}


def read(data: bytes) -> State:
    """A file in either format."""
    if data[:2] == b"PK":
        return dict(torch.load(io.BytesIO(data), weights_only=True))
    return dict(safetensors.torch.load(data))
