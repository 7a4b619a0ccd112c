"""Dampening what the server itself remembers: the current arrays and an inner strategy's own state.

A stateful strategy undoes forgetting otherwise: FedAvgM and the FedOpt family add their next step to arrays
and momenta that they kept, and those still hold what was forgotten.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.flower import records
from fl_unlearn.flower.strategy_state import Memory

log = logging.getLogger(__name__)

SECOND_MOMENTS = frozenset({"v_t"})
"""Attributes that hold squares of values, which shrink by the square of the factor."""


def dampen_arrays(arrays: ArrayRecord, update: DampeningUpdate) -> None:
    """Replace the arrays that an update touches, in place, so that whoever holds the record sees them."""
    state = apply_update({n: t for n, t in records.to_state(arrays).items() if n in update.entries}, update)
    for name, array in records.to_arrays(state).items():
        arrays[name] = array


def dampen_strategy(
    strategy: Strategy | Memory, update: DampeningUpdate, names: list[str], current: ArrayRecord | None
) -> tuple[list[str], list[str]]:
    """Dampen what a strategy keeps that has the shape of the model.

    Understood are ArrayRecords, dicts of arrays or tensors by name, and lists of them in the model's order,
    as attributes of the strategy or of a strategy it wraps, or one level deeper in a list or dict.

    Args:
        strategy: The inner strategy, or what was kept of it.
        update: What was committed.
        names: The model's tensor names in their order.
        current: The current global model, dampened already; where a strategy holds this very object, it is
            left alone.

    Returns:
        The attributes that were dampened, such as ``"FedAvgM.momentum_vector"``, and those that hold arrays
        but were not understood and stay as they are.
    """
    walk = _Walk(update, names, {id(current)})
    walk.strategy(strategy)
    return walk.done, walk.skipped


def dampen_memory(
    strategy: Strategy, update: DampeningUpdate, names: list[str], current: ArrayRecord | None
) -> None:
    """`dampen_strategy`, with what it did and what it did not in the log."""
    dampened, skipped = dampen_strategy(strategy, update, names, current)
    if dampened:
        log.info("dampened the server's own state too: %s", ", ".join(dampened))
    if skipped:
        log.warning("not understood, and left as it is, is what the server keeps in: %s", skipped)


class _Walk:
    def __init__(self, update: DampeningUpdate, names: list[str], seen: set[int]) -> None:
        self.update, self.names, self.seen = update, names, seen
        self.done: list[str] = []
        self.skipped: list[str] = []

    def strategy(self, strategy: Strategy | Memory) -> None:
        if id(strategy) in self.seen:
            return
        self.seen.add(id(strategy))
        kind, attributes = type(strategy).__name__, vars(strategy)
        if isinstance(strategy, Memory):
            kind, attributes = strategy.kind, strategy.attributes
        for attribute, value in list(attributes.items()):
            where = f"{kind}.{attribute}"
            try:
                self.value(where, value, 2 if attribute in SECOND_MOMENTS else 1, depth=0)
            except Exception:
                log.exception("could not dampen %s", where)
                self.skipped.append(where)

    def value(self, where: str, value: Any, power: int, depth: int) -> None:
        if isinstance(value, Strategy | Memory):
            self.strategy(value)
        elif isinstance(value, ArrayRecord | dict | list) and id(value) not in self.seen and len(value):
            self.seen.add(id(value))
            keys = self._keys(value)
            if keys is not None:
                self._dampen(value, keys, power)
                self.done.append(where)
            elif any(_is_array(v) for v in _items(value)):
                self.skipped.append(where)
            elif depth < 1 and not isinstance(value, ArrayRecord):
                for item in _items(value):
                    self.value(where, item, power, depth + 1)

    def _keys(self, value: Any) -> dict[str, Any] | None:
        """Where in ``value`` each of the model's tensors is; None when it is not shaped like the model."""
        if isinstance(value, list):
            if len(value) != len(self.names):
                return None
            keys: dict[str, Any] = {n: i for i, n in enumerate(self.names)}
        else:
            keys = {n: n for n in value}
        for name, entry in self.update.entries.items():
            held: Any = value[keys[name]] if name in keys else None
            if not _is_array(held) or tuple(held.shape) != entry.spec.shape or "float" not in str(held.dtype):
                return None
        return keys if self.update.entries else None

    def _dampen(self, value: Any, keys: dict[str, Any], power: int) -> None:
        for name, entry in self.update.entries.items():
            held = value[keys[name]]
            array = held.numpy() if isinstance(held, Array) else held
            tensor = torch.as_tensor(array).detach().clone()
            flat, indices = tensor.reshape(-1), entry.indices.to(tensor.device, torch.int64)
            factors = entry.factors.to(tensor.device, torch.float64) ** power
            flat[indices] = (flat[indices].double() * factors).to(flat.dtype)
            if isinstance(held, torch.Tensor):
                value[keys[name]] = tensor
            else:
                value[keys[name]] = Array(tensor.numpy()) if isinstance(held, Array) else tensor.numpy()


def _is_array(value: Any) -> bool:
    return isinstance(value, Array | np.ndarray | torch.Tensor)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else list(value.values())
