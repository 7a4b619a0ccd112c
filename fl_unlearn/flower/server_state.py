"""Dampening what the server itself remembers: the current arrays and an inner strategy's own state.

A stateful strategy undoes forgetting otherwise: FedAvgM and the FedOpt family add their next step to arrays
and momenta that they kept, and those still hold what was forgotten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.flower import records

SECOND_MOMENTS = frozenset({"v_t"})
"""Attributes that hold squares of values, which shrink by the square of the factor."""


def dampen_arrays(arrays: ArrayRecord, update: DampeningUpdate) -> None:
    """Replace the arrays that an update touches, in place, so that whoever holds the record sees them."""
    state = apply_update({n: t for n, t in records.to_state(arrays).items() if n in update.entries}, update)
    for name, array in records.to_arrays(state).items():
        arrays[name] = array


def dampen_strategy(strategy: Strategy, update: DampeningUpdate, current: ArrayRecord) -> list[str]:
    """Dampen everything model-shaped that a strategy, and any strategy it wraps, keeps.

    Args:
        strategy: The inner strategy.
        update: What was committed.
        current: The current global model, dampened already; where a strategy holds this very object, it is
            left alone.

    Returns:
        The attributes that were dampened, such as ``"FedAvgM.momentum_vector"``.
    """
    done: list[str] = []
    seen, names = {id(current)}, list(current)
    inner: Any = strategy
    while isinstance(inner, Strategy):
        for attribute, value in list(vars(inner).items()):
            if id(value) in seen:
                continue
            power = 2 if attribute in SECOND_MOMENTS else 1
            if _dampen_value(value, update, names, power):
                seen.add(id(value))
                done.append(f"{type(inner).__name__}.{attribute}")
        inner = vars(inner).get("strategy")
    return done


def _dampen_value(value: Any, update: DampeningUpdate, names: list[str], power: int) -> bool:
    """Dampen one attribute in place if it is model-shaped; says whether it was."""
    if isinstance(value, ArrayRecord):
        fits = _fits({n: a.shape for n, a in value.items()}, update)
        if fits:
            dampen_arrays(value, update)
        return fits
    if isinstance(value, dict) and all(isinstance(v, np.ndarray) for v in value.values()):
        holder: dict[Any, Any] = value
        keys: dict[str, Any] = {n: n for n in value}
    elif isinstance(value, list) and len(value) == len(names) and _all_arrays(value):
        holder = dict(enumerate(value))
        keys = {n: i for i, n in enumerate(names)}
    else:
        return False
    if not _fits({n: holder[k].shape for n, k in keys.items()}, update):
        return False
    for name, entry in update.entries.items():
        flat = holder[keys[name]].copy().reshape(-1)
        factors = entry.factors.numpy().astype(np.float64) ** power
        indices = entry.indices.to(torch.int64).numpy()
        flat[indices] = (flat[indices] * factors).astype(flat.dtype)
        value[keys[name]] = flat.reshape(holder[keys[name]].shape)
    return True


def _all_arrays(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, np.ndarray) for v in values)


def _fits(shapes: dict[str, tuple[int, ...]], update: DampeningUpdate) -> bool:
    return bool(update.entries) and all(
        n in shapes and tuple(shapes[n]) == e.spec.shape for n, e in update.entries.items()
    )
