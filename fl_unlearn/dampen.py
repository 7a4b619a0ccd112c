"""FIUn: from two Fisher diagonals to one compact update, and from an update to an unlearned model.

The rule (arXiv 2408.08493; dampening after Foster et al., AAAI 2024, arXiv 2308.07707): wherever
F_forget > t * F_reference,  theta <- theta * min(1, lambda * F_reference / F_forget).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

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
from fl_unlearn.update import Change, DampeningUpdate, Entry, ErasedLayer

__all__ = [
    "DampeningUpdate",
    "Entry",
    "apply_to_module",
    "apply_update",
    "build_update",
    "change_flat",
    "check_fits",
]

_MARK = "_fl_unlearn_applied"
_PIECE = 1 << 22  # values of an erased tensor computed in float64 at a time


def build_update(
    forget: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    *,
    threshold: float,
    dampening: float = 1.0,
    signature: Signature,
    erasures: Mapping[str, ErasedLayer] | None = None,
) -> DampeningUpdate:
    """Select and scale: the FIUn update for one pair of Fisher diagonals.

    Where F_reference is 0 and F_forget is not, the factor is 0; where both are 0, nothing is selected.

    Args:
        forget: Merged forget Fisher (mean per sample) by parameter name.
        reference: Reference Fisher (mean per sample) by parameter name; same names and shapes.
        threshold: The t of FIUn, > 0.
        dampening: The lambda of FIUn, > 0.
        signature: The model's tensors, to record shapes and dtypes of those the update touches.
        erasures: Layer name to what is erased in it before; the Fishers are then those of the erased model.

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
    return DampeningUpdate(entries, float(threshold), float(dampening), erasures or {})


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
    """Fold the erasures into a model and multiply the selected elements.

    Everything is checked before anything is changed. Tensors that share memory are changed once in place.

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
        for name, change in update.changes.items():
            tensor = state[name].detach()
            if in_place:
                key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()))
                if key in seen:
                    continue
                seen.add(key)
                tensor.copy_(_changed(tensor, change))
            else:
                out[name] = _changed(tensor, change)
    return out


def _changed(tensor: torch.Tensor, change: Change) -> torch.Tensor:
    flat = tensor.flatten().clone()
    change_flat(flat, change)
    return flat.reshape(tensor.shape)


def change_flat(flat: torch.Tensor, change: Change) -> None:
    """Change one flattened tensor, in place: its erasure first, then its selected elements."""
    if change.erasure is not None:
        _erase_flat(flat, change)
    if change.entry is None:
        return
    indices = change.entry.indices.to(flat.device, torch.int64)
    # Half precision is multiplied in float32, so that a factor is not rounded before it is used.
    wide = torch.promote_types(flat.dtype, torch.float32)
    values = flat.index_select(0, indices).to(wide).mul_(change.entry.factors.to(flat.device, wide))
    flat.index_copy_(0, indices, values.to(flat.dtype))


def _erase_flat(flat: torch.Tensor, change: Change) -> None:
    """W <- T W and b <- T b + (I - T) mu; a mean m that a normalisation subtracts: m <- m - (I - T) mu."""
    erasure = change.erasure
    assert erasure is not None
    rows = flat.reshape(len(erasure.mean), -1)  # a view: each column is mapped on its own
    shift = erasure.shift.to(flat.device)[:, None]
    if change.role == "running_mean":
        rows.copy_(rows.double() - shift)
        return
    for piece in torch.split(rows, max(1, _PIECE // len(rows)), dim=1):
        mapped = erasure.linear(piece.double())
        piece.copy_(mapped + shift if change.role == "bias" else mapped)


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
    for name, change in update.changes.items():
        if name not in model:
            raise UpdateError(f"the update names {name!r}, which this model does not have")
        spec = model[name]
        floats = spec.dtype in SIGNATURE_DTYPES and SIGNATURE_DTYPES[spec.dtype].is_floating_point
        if spec.shape != change.spec.shape or not floats:
            raise UpdateError(
                f"the update was made for {name!r} as {change.spec.dtype}{list(change.spec.shape)}, "
                f"this model has {spec.dtype}{list(spec.shape)}"
            )
