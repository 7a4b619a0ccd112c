"""One model that a client keeps, in a file of its own or in memory: what an update changes of it.

A copy may hold only some of the model's layers (a personalised head, say). What is there is changed, by name
and shape; what is not there is named. Files are standard safetensors files, or state dicts that
``torch.save`` wrote, told apart by their first bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import safetensors
import torch

from fl_unlearn.dampen import DampeningUpdate, change_flat
from fl_unlearn.tensor_file import parse
from fl_unlearn.types import (
    SIGNATURE_DTYPES,
    CorruptCheckpointError,
    Signature,
    TensorSpec,
    UnlearnError,
    dtype_name,
)
from fl_unlearn.update import Change

_ZIP = b"PK\x03\x04"
_MOST = 3  # names that a sentence lists


class CopyError(UnlearnError):
    """A copy that a client keeps cannot be read, or an update cannot be applied to it."""


class ForeignCopyError(CopyError):
    """What a client keeps is no copy of this model: other names, or other shapes."""


@dataclass(frozen=True)
class Fit:
    """What an update changes of one copy.

    Attributes:
        changes: Name in the copy to what is done to that tensor.
        absent: Names, as the model has them, of tensors that the update changes and the copy does not hold.
    """

    changes: Mapping[str, Change]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class ChangedFile:
    """A copy's file after an update.

    Attributes:
        data: Its new content; None when the update changes nothing that it holds.
        before: SHA-256 (hexadecimal) of the file as it was.
        after: SHA-256 of what it becomes.
        absent: As in `Fit`.
    """

    data: bytes | None
    before: str
    after: str
    absent: tuple[str, ...]


def fit(update: DampeningUpdate, copy: Signature, model: Signature) -> Fit:
    """Find what of a copy an update changes.

    Args:
        update: The update; it names tensors as the model does, or by their place in it ("0", "1", ...: an
            app that sends plain lists of arrays).
        copy: The copy's tensors, named as the model's, or all of them by their place.
        model: The project's model.

    Raises:
        ForeignCopyError: If the copy holds none of the model's tensors, or one of another shape.
        CopyError: If it holds a tensor that the update changes in a dtype that is not floating-point.
    """
    numbers = {str(i): name for i, name in enumerate(model)}
    own = numbers if set(copy) == set(numbers) else {n: n for n in copy if n in model}
    if not own:
        raise ForeignCopyError(f"none of its tensors ({_some(copy)}) is one of the model's ({_some(model)})")
    for name, theirs in own.items():
        if copy[name].shape != model[theirs].shape:
            raise ForeignCopyError(
                f"{name!r} is {list(copy[name].shape)} in it, {list(model[theirs].shape)} in the model"
            )
    changed = {numbers.get(n, n) if n not in model else n: c for n, c in update.changes.items()}
    changes = {name: changed[theirs] for name, theirs in own.items() if theirs in changed}
    for name in changes:
        dtype = SIGNATURE_DTYPES.get(copy[name].dtype)
        if dtype is None or not dtype.is_floating_point:
            raise CopyError(
                f"{name!r} is {copy[name].dtype} in it; only floating-point values can be dampened"
            )
    return Fit(changes, tuple(sorted(set(changed) - set(own.values()))))


def change_file(data: bytes, update: DampeningUpdate, model: Signature) -> ChangedFile:
    """Apply an update to the content of one file.

    Of a safetensors file, all bytes but the changed tensors' stay as they were.

    Raises:
        ForeignCopyError: If it is no copy of the model.
        CopyError: If the content cannot be read, or an update cannot be applied to it.
    """
    signature, change = _open(data)
    found = fit(update, signature, model)
    before = sha256(data).hexdigest()
    if not found.changes:
        return ChangedFile(None, before, before, found.absent)
    after = change(found.changes)
    return ChangedFile(after, before, sha256(after).hexdigest(), found.absent)


def check_file(data: bytes) -> None:
    """Raise CopyError unless `change_file` can read the content."""
    _open(data)


# --------------------------------------------------------------------------- the two formats
_ChangeFn = Callable[[Mapping[str, Change]], bytes]


def _open(data: bytes) -> tuple[dict[str, TensorSpec], _ChangeFn]:
    """The names, shapes and dtypes of a file's tensors, and what makes its content after some changes."""
    return _open_torch(data) if data[:4] == _ZIP else _open_safetensors(data)


def _open_safetensors(data: bytes) -> tuple[dict[str, TensorSpec], _ChangeFn]:
    try:
        layout = parse(data, len(data), "it")
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # what nobody can load is no copy
    except (CorruptCheckpointError, safetensors.SafetensorError) as e:
        raise CopyError(
            "it is neither a safetensors file nor one that torch.save wrote, or it is truncated or damaged"
        ) from e

    def change(changes: Mapping[str, Change]) -> bytes:
        out = bytearray(data)
        for segment in layout.segments:
            if segment.name in changes:
                # A copy: in the file a tensor's bytes need not be aligned, to be computed with they must.
                values = bytearray(data[segment.start : segment.start + segment.size])
                flat = torch.frombuffer(values, dtype=segment.dtype or torch.uint8)
                change_flat(flat, changes[segment.name])
                out[segment.start : segment.start + segment.size] = values
        return bytes(out)

    dtypes = {s.name: dtype_name(s.dtype) if s.dtype else "of an unknown dtype" for s in layout.segments}
    return {s.name: TensorSpec(s.shape, dtypes[s.name]) for s in layout.segments}, change


def _open_torch(data: bytes) -> tuple[dict[str, TensorSpec], _ChangeFn]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler, the zip reader and torch raise what they like
        raise CopyError(f"torch.load with weights_only=True cannot read it ({type(e).__name__})") from e
    _check_state_dict(state)

    def change(changes: Mapping[str, Change]) -> bytes:
        done: set[tuple[int, int]] = set()
        with torch.no_grad():
            for name, what in changes.items():
                tensor = state[name].detach()
                place = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()))
                if place not in done:  # tied tensors are one in the file, and stay so
                    flat = tensor.flatten().clone()
                    change_flat(flat, what)
                    tensor.copy_(flat.reshape(tensor.shape))
                    done.add(place)
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    return {n: TensorSpec(tuple(t.shape), dtype_name(t.dtype)) for n, t in state.items()}, change


def _check_state_dict(state: Any) -> None:
    if not isinstance(state, Mapping) or not state:
        raise CopyError(f"it holds a {type(state).__name__}, not a state dict (save `model.state_dict()`)")
    for name, value in state.items():
        plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized
        if not isinstance(name, str) or not plain:
            raise CopyError(
                f"its {str(name)[:60]!r} is no plain tensor but a {type(value).__name__}; "
                "keep the state dict in a file of its own"
            )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(repr(n[:60]) for n in list(names)[:_MOST])
    return shown + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
