"""The one update of a request: what every affected model gets, as data, as tensors and as bytes.

It depends on no model's values, so one update serves every model of the same shape. It has two parts, done in
this order: *erasures* replace the weight and the constant part of hidden layers (`erase`), and *entries*
multiply selected elements (FIUn; `dampen`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fl_unlearn.erase import Erasure
from fl_unlearn.types import SIGNATURE_DTYPES, EraseError, TensorSpec, UpdateError

FORMAT = "fl-unlearn-update/1"
FORMAT_ERASING = "fl-unlearn-update/2"
"""Format of updates with erasures; those without keep the format, and so the digest, of before."""

Role = Literal["weight", "bias", "running_mean"]
_SHIFTS = ("bias", "running_mean")
_HEADER = "fl_unlearn"


@dataclass(frozen=True)
class Entry:
    """The elements of one tensor that an update multiplies.

    Attributes:
        indices: Positions in the flattened tensor, strictly ascending, int32 or int64, shape (k,).
        factors: What each is multiplied by, float32 in [0, 1), shape (k,).
        spec: Shape and dtype of the tensor the entry belongs to.
    """

    indices: Tensor
    factors: Tensor
    spec: TensorSpec


@dataclass(frozen=True)
class ErasedLayer:
    """An erasure of one hidden layer's output, and the two tensors of the model it is folded into.

    Attributes:
        erasure: The map, of the layer's d outputs.
        weight: Name of the layer's weight, of shape (d, ...).
        shift: Name of the tensor of shape (d,) that takes the constant part.
        shift_is: ``"bias"``, that of the layer; or ``"running_mean"``, that of a batch normalisation right
            after a layer without a bias.
        weight_spec: Shape and dtype of the weight.
        shift_spec: Shape and dtype of the other.
    """

    erasure: Erasure
    weight: str
    shift: str
    shift_is: Literal["bias", "running_mean"]
    weight_spec: TensorSpec
    shift_spec: TensorSpec


@dataclass(frozen=True)
class Change:
    """All that an update does to one tensor.

    Attributes:
        spec: The tensor's shape and dtype.
        entry: The elements that are multiplied, after the erasure if there is one.
        erasure: The erasure that changes the whole tensor.
        role: What the tensor is to the erased layer.
    """

    spec: TensorSpec
    entry: Entry | None = None
    erasure: Erasure | None = None
    role: Role = "weight"


@dataclass(frozen=True)
class DampeningUpdate:
    """One update: what every affected model gets, and how it was chosen.

    Attributes:
        entries: Tensor name to the elements selected in it; tensors without any are absent.
        threshold: The t of FIUn.
        dampening: The lambda of FIUn.
        erasures: Layer name to the erasure folded into it; before the entries.
    """

    entries: Mapping[str, Entry]
    threshold: float
    dampening: float = 1.0
    erasures: Mapping[str, ErasedLayer] = field(default_factory=dict)

    @property
    def selected(self) -> int:
        """Number of elements that the update multiplies."""
        return sum(e.indices.numel() for e in self.entries.values())

    @property
    def empty(self) -> bool:
        """Whether the update changes nothing."""
        return not self.erasures and not self.selected

    @cached_property
    def changes(self) -> Mapping[str, Change]:
        """What the update does, tensor by tensor."""
        out = {}
        for e in self.erasures.values():
            out[e.weight] = Change(e.weight_spec, erasure=e.erasure, role="weight")
            out[e.shift] = Change(e.shift_spec, erasure=e.erasure, role=e.shift_is)
        for name, entry in self.entries.items():
            out[name] = replace(out[name], entry=entry) if name in out else Change(entry.spec, entry)
        return out

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the update's content, in hexadecimal: its name in ledgers and checkpoints."""
        sha = hashlib.sha256(self.header().encode())
        for name in sorted(self.entries):
            entry = self.entries[name]
            sha.update(entry.indices.to(torch.int64).contiguous().numpy().tobytes())
            sha.update(entry.factors.contiguous().numpy().tobytes())
        for layer in sorted(self.erasures):
            e = self.erasures[layer].erasure
            for tensor in (e.a, e.b, e.mean):
                sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def variant(self, threshold: float, dampening: float | None = None) -> DampeningUpdate:
        """The update for a larger threshold or a smaller dampening, without any Fisher; the same erasures.

        A factor f at dampening lambda belongs to F_forget / F_reference = lambda / f, which decides about
        any larger threshold, and factors are proportional to lambda. So one update stands for a whole grid.

        Raises:
            UpdateError: If entries would be missing: a smaller threshold, a larger dampening, or another
                dampening of an update that caps factors at 1 (threshold < dampening).
        """
        lam = self.dampening if dampening is None else dampening
        capped = lam != self.dampening and self.threshold < self.dampening
        if threshold < self.threshold or not 0 < lam <= self.dampening or capped:
            raise UpdateError(
                f"an update with t = {self.threshold:g}, lambda = {self.dampening:g} does not contain the "
                f"one with t = {threshold:g}, lambda = {lam:g}; build it from the Fishers"
            )
        limit, scale = self.dampening / threshold, lam / self.dampening
        kept = {}
        for name, e in self.entries.items():
            mask = e.factors.double() < limit
            if bool(mask.any()):
                kept[name] = Entry(e.indices[mask], (e.factors[mask].double() * scale).float(), e.spec)
        return DampeningUpdate(kept, float(threshold), float(lam), self.erasures)

    def renamed(self, names: Mapping[str, str]) -> DampeningUpdate:
        """The update for a model that calls its tensors otherwise; ``names`` maps from here to there.

        Raises:
            UpdateError: If ``names`` lacks a tensor that the update names.
        """
        if unknown := sorted(set(self.changes) - set(names)):
            raise UpdateError(f"the update names tensors that this model does not have: {unknown[:4]}")
        return replace(
            self,
            entries={names[n]: e for n, e in self.entries.items()},
            erasures={
                layer: replace(e, weight=names[e.weight], shift=names[e.shift])
                for layer, e in self.erasures.items()
            },
        )

    # ------------------------------------------------------------------ as bytes
    def header(self) -> str:
        """Everything but the tensors, as canonical JSON."""
        plain: dict[str, Any] = {
            "format": FORMAT,
            "threshold": self.threshold,
            "dampening": self.dampening,
            "tensors": {n: _plain(e.spec) for n, e in sorted(self.entries.items())},
        }
        if self.erasures:
            plain["format"] = FORMAT_ERASING
            plain["erasures"] = {
                layer: {
                    "weight": e.weight,
                    "weight_spec": _plain(e.weight_spec),
                    "shift": e.shift,
                    "shift_is": e.shift_is,
                    "shift_spec": _plain(e.shift_spec),
                    "strength": e.erasure.strength,
                }
                for layer, e in sorted(self.erasures.items())
            }
        return json.dumps(plain, sort_keys=True, allow_nan=False)

    def to_tensors(self) -> dict[str, Tensor]:
        """The update's tensors.

        ``i/<name>`` holds indices, ``f/<name>`` factors; ``a/<layer>``, ``b/<layer>`` and ``m/<layer>`` an
        erasure's A, B and mu.
        """
        out: dict[str, Tensor] = {}
        for name, entry in self.entries.items():
            out[f"i/{name}"], out[f"f/{name}"] = entry.indices.contiguous(), entry.factors.contiguous()
        for layer, erased in self.erasures.items():
            e = erased.erasure
            out |= {f"a/{layer}": e.a.contiguous(), f"b/{layer}": e.b.contiguous(), f"m/{layer}": e.mean}
        return out

    @classmethod
    def from_tensors(cls, header: str, tensors: Mapping[str, Tensor]) -> DampeningUpdate:
        """Build an update from what `header` and `to_tensors` gave, checking all of it.

        Raises:
            UpdateError: If the header or a tensor is malformed, out of range or out of place.
        """
        plain = _parse_header(header)
        expected = {f"{k}/{n}" for n in plain["tensors"] for k in "if"}
        expected |= {f"{k}/{n}" for n in plain["erasures"] for k in "abm"}
        if expected != set(tensors):
            raise UpdateError(
                f"the update's tensors do not match its header: {sorted(expected ^ set(tensors))[:4]}"
            )
        entries = {}
        for name, info in plain["tensors"].items():
            entries[name] = _checked_entry(name, tensors[f"i/{name}"], tensors[f"f/{name}"], _spec(info))
        erasures = {}
        for layer, info in plain["erasures"].items():
            a, b, mean = (tensors[f"{k}/{layer}"] for k in "abm")
            erasures[layer] = _checked_layer(layer, info, Erasure(a, b, mean, info["strength"]))
        update = cls(entries, plain["threshold"], plain["dampening"], erasures)
        if len({n for e in erasures.values() for n in (e.weight, e.shift)}) < 2 * len(erasures):
            raise UpdateError("two erasures of the update change the same tensor")
        if wrong := [n for n, e in entries.items() if update.changes[n].spec != e.spec]:
            raise UpdateError(f"the update's erasures and entries know {wrong[0]!r} in different shapes")
        return update

    def to_bytes(self) -> bytes:
        """One standard safetensors file."""
        return safetensors.torch.save(self.to_tensors(), metadata={_HEADER: self.header()})

    @classmethod
    def from_bytes(cls, data: bytes) -> DampeningUpdate:
        """Read what `to_bytes` wrote, checking all of it.

        Raises:
            UpdateError: If the bytes are not a well-formed update.
        """
        try:
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])["__metadata__"][_HEADER]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
            raise UpdateError(f"not an fl-unlearn update file: {e}") from e
        return cls.from_tensors(header, tensors)


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": spec.dtype}


def _spec(plain: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(plain["shape"]), plain["dtype"])


# --------------------------------------------------------------------------- checks
def _parse_header(header: str) -> dict[str, Any]:
    try:
        plain = json.loads(header)
        known = plain["format"] in (FORMAT, FORMAT_ERASING)
        numbers = [plain["threshold"], plain["dampening"]]
        if plain["format"] != FORMAT_ERASING:
            plain["erasures"] = {}
        good = bool(plain["erasures"]) == (plain["format"] == FORMAT_ERASING)
        specs = list(plain["tensors"].values())
        for e in plain["erasures"].values():
            specs += [e["weight_spec"], e["shift_spec"]]
            numbers.append(e["strength"])
            good &= isinstance(e["weight"], str) and isinstance(e["shift"], str) and e["shift_is"] in _SHIFTS
        good &= all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in numbers)
        for info in specs:
            good &= info["dtype"] in SIGNATURE_DTYPES and SIGNATURE_DTYPES[info["dtype"]].is_floating_point
            good &= all(isinstance(s, int) and s >= 0 for s in info["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UpdateError(f"the update's header is malformed: {e!r}") from e
    if not known:
        raise UpdateError(
            f"the update has format {plain['format']!r}; this version reads {FORMAT!r} and {FORMAT_ERASING!r}"
        )
    if not good:
        raise UpdateError("the update's header has a number, shape, dtype or name out of range")
    return dict(plain)


def _checked_entry(name: str, indices: Tensor, factors: Tensor, spec: TensorSpec) -> Entry:
    if indices.dtype not in (torch.int32, torch.int64) or factors.dtype != torch.float32:
        raise UpdateError(f"the update's entry {name!r} has dtypes {indices.dtype}, {factors.dtype}")
    if indices.dim() != 1 or indices.shape != factors.shape or indices.numel() == 0:
        raise UpdateError(
            f"the update's entry {name!r} has {indices.numel()} indices, {factors.numel()} factors"
        )
    wide = indices.to(torch.int64)
    if bool((wide[1:] <= wide[:-1]).any()) or int(wide[0]) < 0 or int(wide[-1]) >= math.prod(spec.shape):
        raise UpdateError(f"the update's entry {name!r} has indices out of order or out of range")
    if not bool(((factors >= 0) & (factors < 1)).all()):
        raise UpdateError(f"the update's entry {name!r} has factors outside [0, 1)")
    return Entry(indices, factors, spec)


def _checked_layer(layer: str, info: Mapping[str, Any], erasure: Erasure) -> ErasedLayer:
    try:
        erasure.validate()
    except EraseError as e:
        raise UpdateError(f"the update's erasure of {layer!r}: {e}") from e
    weight, shift, d = _spec(info["weight_spec"]), _spec(info["shift_spec"]), len(erasure.mean)
    if len(weight.shape) < 2 or weight.shape[0] != d or shift.shape != (d,):
        raise UpdateError(
            f"the update's erasure of {layer!r} is of {d} outputs, its tensors are {list(weight.shape)} and "
            f"{list(shift.shape)}"
        )
    return ErasedLayer(erasure, info["weight"], info["shift"], info["shift_is"], weight, shift)
