"""FIUn: from two Fisher diagonals to one compact update, and from an update to an unlearned model.

The rule (arXiv 2408.08493; dampening after Foster et al., AAAI 2024, arXiv 2308.07707): wherever
F_forget > t * F_reference,  theta <- theta * min(1, lambda * F_reference / F_forget).
The update depends on no model's values, so one update serves every model of the same shape.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from fl_unlearn.types import (
    SIGNATURE_DTYPES,
    AlreadyAppliedError,
    Signature,
    StateDict,
    TensorSpec,
    UpdateError,
    signature_of,
)

FORMAT = "fl-unlearn-update/1"
_HEADER = "fl_unlearn"
_MARK = "_fl_unlearn_applied"


@dataclass(frozen=True)
class Entry:
    """The elements of one tensor that an update multiplies.

    Attributes:
        indices: Positions in the flattened tensor, strictly ascending, int32 or int64, shape (k,).
        factors: What each is multiplied by, float32 in [0, 1), shape (k,).
        spec: Shape and dtype of the tensor the entry belongs to.
    """

    indices: torch.Tensor
    factors: torch.Tensor
    spec: TensorSpec


@dataclass(frozen=True)
class DampeningUpdate:
    """One FIUn update: what every affected model multiplies, and how it was chosen.

    Attributes:
        entries: Tensor name to the elements selected in it; tensors without any are absent.
        threshold: The t of FIUn.
        dampening: The lambda of FIUn.
    """

    entries: Mapping[str, Entry]
    threshold: float
    dampening: float = 1.0

    @property
    def selected(self) -> int:
        """Number of elements that the update changes."""
        return sum(e.indices.numel() for e in self.entries.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the update's content, in hexadecimal: its name in ledgers and checkpoints."""
        sha = hashlib.sha256(self.header().encode())
        for name in sorted(self.entries):
            entry = self.entries[name]
            sha.update(entry.indices.to(torch.int64).contiguous().numpy().tobytes())
            sha.update(entry.factors.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def variant(self, threshold: float, dampening: float | None = None) -> DampeningUpdate:
        """The update for a larger threshold or a smaller dampening, without any Fisher.

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
        return DampeningUpdate(kept, float(threshold), float(lam))

    def header(self) -> str:
        """Everything but the tensors, as canonical JSON."""
        tensors = {
            n: {"shape": list(e.spec.shape), "dtype": e.spec.dtype} for n, e in sorted(self.entries.items())
        }
        plain = {
            "format": FORMAT,
            "threshold": self.threshold,
            "dampening": self.dampening,
            "tensors": tensors,
        }
        return json.dumps(plain, sort_keys=True, allow_nan=False)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the update: ``i/<name>`` holds indices, ``f/<name>`` factors."""
        out: dict[str, torch.Tensor] = {}
        for name, e in self.entries.items():
            out[f"i/{name}"], out[f"f/{name}"] = e.indices.contiguous(), e.factors.contiguous()
        return out

    @classmethod
    def from_tensors(cls, header: str, tensors: Mapping[str, torch.Tensor]) -> DampeningUpdate:
        """Build an update from what `header` and `to_tensors` gave, checking all of it.

        Raises:
            UpdateError: If the header or a tensor is malformed, out of range or out of place.
        """
        plain = _parse_header(header)
        expected = {f"{k}/{n}" for n in plain["tensors"] for k in "if"}
        if expected != set(tensors):
            raise UpdateError(
                f"the update's tensors do not match its header: {sorted(expected ^ set(tensors))[:4]}"
            )
        entries = {}
        for name, info in plain["tensors"].items():
            spec = TensorSpec(tuple(info["shape"]), info["dtype"])
            entries[name] = _checked_entry(name, tensors[f"i/{name}"], tensors[f"f/{name}"], spec)
        return cls(entries, plain["threshold"], plain["dampening"])

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


def build_update(
    forget: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    *,
    threshold: float,
    dampening: float = 1.0,
    signature: Signature,
) -> DampeningUpdate:
    """Select and scale: the FIUn update for one pair of Fisher diagonals.

    Where F_reference is 0 and F_forget is not, the factor is 0; where both are 0, nothing is selected.

    Args:
        forget: Merged forget Fisher (mean per sample) by parameter name.
        reference: Reference Fisher (mean per sample) by parameter name; same names and shapes.
        threshold: The t of FIUn, > 0.
        dampening: The lambda of FIUn, > 0.
        signature: The model's tensors, to record shapes and dtypes of those the update touches.

    Returns:
        The update; elements whose factor would be 1 are left out.

    Raises:
        UpdateError: If names or shapes differ, a Fisher is negative or not finite, or t or lambda is not > 0.
    """
    for label, value in (("threshold", threshold), ("dampening", dampening)):
        if not (math.isfinite(value) and value > 0):
            raise UpdateError(f"{label} must be a finite number above 0, got {value!r}")
    if set(forget) != set(reference):
        raise UpdateError(
            f"the two Fishers name different parameters: {sorted(set(forget) ^ set(reference))[:4]}"
        )
    entries = {}
    for name in forget:
        if name not in signature:
            raise UpdateError(f"the Fisher names {name!r}, which the model does not have")
        entry = _select(name, forget[name], reference[name], threshold, dampening, signature[name])
        if entry is not None:
            entries[name] = entry
    return DampeningUpdate(entries, float(threshold), float(dampening))


def _select(
    name: str, forget: torch.Tensor, reference: torch.Tensor, t: float, lam: float, spec: TensorSpec
) -> Entry | None:
    for label, fisher in (("forget", forget), ("reference", reference)):
        if tuple(fisher.shape) != spec.shape:
            raise UpdateError(
                f"the {label} Fisher of {name!r} is {list(fisher.shape)}, not {list(spec.shape)}"
            )
        if not bool(torch.isfinite(fisher).all()) or bool((fisher < 0).any()):
            raise UpdateError(f"the {label} Fisher of {name!r} has negative or non-finite values")
    if not SIGNATURE_DTYPES[spec.dtype].is_floating_point:
        raise UpdateError(f"{name!r} is {spec.dtype}; only floating-point tensors can be dampened")
    f, r = forget.detach().cpu().double().flatten(), reference.detach().cpu().double().flatten()
    chosen = (f > t * r).nonzero().squeeze(1)
    factors = (lam * r[chosen] / f[chosen]).clamp(max=1.0).float()
    changed = factors < 1.0
    if not bool(changed.any()):
        return None
    index_dtype = torch.int32 if f.numel() <= torch.iinfo(torch.int32).max else torch.int64
    return Entry(chosen[changed].to(index_dtype), factors[changed], spec)


def apply_update(
    state: StateDict, update: DampeningUpdate, *, in_place: bool = False, applied: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Multiply the selected elements of a model.

    Everything is checked before anything is changed. Tensors that share memory are dampened once in place.

    Args:
        state: The model's tensors.
        update: What to apply.
        in_place: Change the tensors of ``state`` themselves; otherwise those that change are copied.
        applied: Digests of the updates that this model has had.

    Returns:
        The model's tensors after the update, in the order of ``state``.

    Raises:
        AlreadyAppliedError: If ``applied`` has the update's digest.
        UpdateError: If the model lacks a tensor that the update names, or it has another shape or no floats.
    """
    if update.digest in applied:
        raise AlreadyAppliedError(
            f"update {update.digest[:12]} was applied to this model before; not repeated"
        )
    check_fits(update, signature_of(state))
    out = dict(state)
    seen: set[tuple[int, int]] = set()
    with torch.no_grad():
        for name, entry in update.entries.items():
            tensor = state[name].detach()
            if in_place:
                key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()))
                if key in seen:
                    continue
                seen.add(key)
                tensor.copy_(_dampened(tensor, entry))
            else:
                out[name] = _dampened(tensor, entry)
    return out


def _dampened(tensor: torch.Tensor, entry: Entry) -> torch.Tensor:
    flat = tensor.flatten().clone()
    dampen_flat(flat, entry)
    return flat.reshape(tensor.shape)


def dampen_flat(flat: torch.Tensor, entry: Entry) -> None:
    """Multiply the selected elements of one flattened tensor, in place."""
    indices = entry.indices.to(flat.device, torch.int64)
    # Half precision is multiplied in float32, so that a factor is not rounded before it is used.
    wide = torch.promote_types(flat.dtype, torch.float32)
    values = flat.index_select(0, indices).to(wide).mul_(entry.factors.to(flat.device, wide))
    flat.index_copy_(0, indices, values.to(flat.dtype))


def apply_to_module(model: nn.Module, update: DampeningUpdate) -> None:
    """Apply an update to a live model, once.

    Raises:
        AlreadyAppliedError: If this module object has had the update.
        UpdateError: If the update does not fit the model.
    """
    applied: set[str] = model.__dict__.setdefault(_MARK, set())
    apply_update(model.state_dict(), update, in_place=True, applied=applied)
    applied.add(update.digest)


def check_fits(update: DampeningUpdate, model: Signature) -> None:
    """Raise UpdateError unless ``model`` has every tensor that the update names, in its shape.

    A floating dtype other than the recorded one is accepted: Flower's strategies widen dtypes between rounds.
    """
    for name, entry in update.entries.items():
        if name not in model:
            raise UpdateError(f"the update names {name!r}, which this model does not have")
        spec = model[name]
        floats = spec.dtype in SIGNATURE_DTYPES and SIGNATURE_DTYPES[spec.dtype].is_floating_point
        if spec.shape != entry.spec.shape or not floats:
            raise UpdateError(
                f"the update was made for {name!r} as {entry.spec.dtype}{list(entry.spec.shape)}, "
                f"this model has {spec.dtype}{list(spec.shape)}"
            )


def _parse_header(header: str) -> dict[str, Any]:
    try:
        plain = json.loads(header)
        known = plain["format"] == FORMAT
        numbers = [plain["threshold"], plain["dampening"]]
        good = all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in numbers)
        for info in plain["tensors"].values():
            good &= info["dtype"] in SIGNATURE_DTYPES and SIGNATURE_DTYPES[info["dtype"]].is_floating_point
            good &= all(isinstance(s, int) and s >= 0 for s in info["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UpdateError(f"the update's header is malformed: {e!r}") from e
    if not known:
        raise UpdateError(f"the update has format {plain['format']!r}; this version reads {FORMAT!r}")
    if not good:
        raise UpdateError("the update's header has a threshold, dampening, shape or dtype out of range")
    return dict(plain)


def _checked_entry(name: str, indices: torch.Tensor, factors: torch.Tensor, spec: TensorSpec) -> Entry:
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
