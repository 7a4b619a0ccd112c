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
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy

from fl_unlearn.dampen import DampeningUpdate, apply_update, change_flat
from fl_unlearn.flower import records
from fl_unlearn.flower.strategy_state import Memory
from fl_unlearn.update import Change

log = logging.getLogger(__name__)

FIRST_MOMENTS = frozenset({"momentum_vector", "m_t"})
"""Attributes that hold steps, not values. They are set to zero, everywhere: they sum up training on what is
forgotten, and where an update leaves the model alone they would go on teaching it. Measured with FedAdam:
with steps dampened where the model is, the class came back to 14 % within two rounds; with steps of zero it
did not.
"""

SECOND_MOMENTS = frozenset({"v_t"})
"""Attributes that hold squares of steps: what multiplies or mixes steps does so to these squared."""


def dampen_arrays(arrays: ArrayRecord, update: DampeningUpdate) -> None:
    """Replace the arrays that an update touches, in place, so that whoever holds the record sees them."""
    state = apply_update({n: t for n, t in records.to_state(arrays).items() if n in update.changes}, update)
    for name, array in records.to_arrays(state).items():
        arrays[name] = array


AnyStrategy = Strategy | LegacyStrategy


def dampen_strategy(
    strategy: AnyStrategy | Memory, update: DampeningUpdate, names: list[str], current: ArrayRecord | None
) -> tuple[list[str], list[str]]:
    """Dampen what a strategy keeps that has the shape of the model.

    Understood are ArrayRecords, dicts of arrays or tensors by name, and lists of them or legacy `Parameters`
    in the model's order, as attributes of the strategy or of a strategy it wraps, or one level deeper in a
    list or dict. What is named in `SECOND_MOMENTS` holds squares of steps; steps (`FIRST_MOMENTS`) become
    zero; all else is taken for values.

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
    strategy: AnyStrategy, update: DampeningUpdate, names: list[str], current: ArrayRecord | None
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

    def strategy(self, strategy: AnyStrategy | Memory) -> None:
        if id(strategy) in self.seen:
            return
        self.seen.add(id(strategy))
        kind, attributes = type(strategy).__name__, vars(strategy)
        if isinstance(strategy, Memory):
            kind, attributes = strategy.kind, strategy.attributes
        for attribute, value in list(attributes.items()):
            where = f"{kind}.{attribute}"
            try:
                self.value(where, value, _power(attribute), depth=0)
            except Exception:
                log.exception("could not dampen %s", where)
                self.skipped.append(where)

    def value(self, where: str, value: Any, power: int, depth: int) -> None:
        if isinstance(value, AnyStrategy | Memory):
            self.strategy(value)
        elif isinstance(value, Parameters):
            self._parameters(where, value, power)
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

    def _parameters(self, where: str, value: Parameters, power: int) -> None:
        """Legacy ones, in place: a server may hold the same object."""
        if id(value) in self.seen or not value.tensors:
            return
        self.seen.add(id(value))
        arrays = parameters_to_ndarrays(value)
        keys = self._keys(arrays)
        if keys is None:
            self.skipped.append(where)
            return
        self._dampen(arrays, keys, power)
        value.tensors[:] = ndarrays_to_parameters(arrays).tensors
        self.done.append(where)

    def _keys(self, value: Any) -> dict[str, Any] | None:
        """Where in ``value`` each of the model's tensors is; None when it is not shaped like the model."""
        if isinstance(value, list):
            if len(value) != len(self.names):
                return None
            keys: dict[str, Any] = {n: i for i, n in enumerate(self.names)}
        else:
            keys = {n: n for n in value}
        for name, change in self.update.changes.items():
            held: Any = value[keys[name]] if name in keys else None
            if (
                not _is_array(held)
                or tuple(held.shape) != change.spec.shape
                or "float" not in str(held.dtype)
            ):
                return None
        return keys if self.update.changes else None

    def _dampen(self, value: Any, keys: dict[str, Any], power: int) -> None:
        for name in keys if power == 1 else self.update.changes:
            held = value[keys[name]]
            array = held.numpy() if isinstance(held, Array) else held
            tensor = torch.as_tensor(array).detach().clone(memory_format=torch.contiguous_format)
            if power == 0:
                change_flat(tensor.view(-1), self.update.changes[name])
            elif power == 1:
                tensor.zero_()
            else:
                _change_squares(tensor.view(-1), self.update.changes[name])
            if isinstance(held, torch.Tensor):
                value[keys[name]] = tensor
            else:
                value[keys[name]] = Array(tensor.numpy()) if isinstance(held, Array) else tensor.numpy()


def _power(attribute: str) -> int:
    """Whether an attribute holds the model's values (0), steps of them (1) or squares of steps (2)."""
    return 2 if attribute in SECOND_MOMENTS else 1 if attribute in FIRST_MOMENTS else 0


def _change_squares(flat: torch.Tensor, change: Change) -> None:
    """What becomes of the mean square of steps, of a flattened tensor, when the tensor is changed.

    A running mean is moved by a constant, so its steps stay as they are.
    """
    if change.erasure is not None and change.role != "running_mean":
        rows = flat.view(len(change.erasure.mean), -1)
        rows.copy_(change.erasure.squared(rows.double()))
    if change.entry is not None:
        indices = change.entry.indices.to(flat.device, torch.int64)
        factors = change.entry.factors.to(flat.device, torch.float64).square()
        flat[indices] = (flat[indices].double() * factors).to(flat.dtype)


def _is_array(value: Any) -> bool:
    return isinstance(value, Array | np.ndarray | torch.Tensor)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else list(value.values())
