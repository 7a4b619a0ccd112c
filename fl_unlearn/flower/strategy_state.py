"""What a strategy remembers from round to round, as the bytes of one safetensors file and back.

A generic walk over a strategy's attributes: Flower's records and arrays, NumPy arrays, tensors, bytes, plain
values, lists, tuples and dicts of them, and strategies that it wraps. Values go to the file as raw bytes,
their structure as JSON to its header. Nothing is pickled: reading builds values, and never runs code.
"""

from __future__ import annotations

import json
import types
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_unlearn.types import SIGNATURE_DTYPES, CorruptCheckpointError, ModelMismatchError, dtype_name

FORMAT = "fl-unlearn-recovery/1"
_HEADER = "fl_unlearn"
_TAG = "is"
_NUMPY_KINDS = "biufc"
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_DICTS: dict[str, type] = {"dict": dict, "ordered": OrderedDict}
_LISTS: dict[str, type] = {"list": list, "tuple": tuple}

Baseline = Mapping[str, Any]
"""Path of an attribute to what it was, for those that hold no arrays."""


@dataclass
class Memory:
    """What a strategy remembers, apart from the object that does.

    Attributes:
        kind: Name of the strategy's class.
        attributes: Attribute to value; a wrapped strategy's value is a `Memory` too.
        unsaved: Paths of attributes that were not understood.
    """

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)
    unsaved: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return all(isinstance(v, Memory) and v.empty for v in self.attributes.values())


class _NotUnderstoodError(Exception):
    """A value of a kind that cannot be kept."""


# --------------------------------------------------------------------------- writing
def baseline(strategy: Strategy) -> Baseline:
    """The plain values that a strategy has before it runs: its configuration, which is not to be kept."""
    writer = _Writer(None, {})
    writer.memory(strategy, type(strategy).__name__)
    return writer.plain


def write(
    source: Strategy | Memory, before: Baseline, *, live: ArrayRecord | None, with_model: bool
) -> bytes | None:
    """What a strategy remembers, as the bytes of one file.

    Args:
        source: The strategy, or what `read` gave.
        before: What is left out where it has not changed (`baseline`); arrays never are.
        live: The current global model; where the strategy holds this very object, that is noted instead.
        with_model: Write the model's values too.

    Returns:
        The bytes; None if there is nothing to keep.
    """
    writer = _Writer(live, before)
    model = writer.record(live, "model") if with_model and live is not None else None
    kind = source.kind if isinstance(source, Memory) else type(source).__name__
    memory = writer.memory(source, kind)
    if model is None and not _holds_something(memory):
        return None
    head = {"format": FORMAT, "model": model, "strategy": memory}
    return safetensors.numpy.save(writer.blobs, metadata={_HEADER: json.dumps(head)})


def _holds_something(memory: Mapping[str, Any]) -> bool:
    return bool(memory["attributes"]) or any(_holds_something(m) for m in memory["inner"].values())


class _Writer:
    def __init__(self, live: ArrayRecord | None, before: Baseline) -> None:
        self.live, self.before = live, before
        self.blobs: dict[str, np.ndarray[Any, Any]] = {}
        self.plain: dict[str, Any] = {}
        self.seen: dict[int, tuple[str, Any]] = {}  # holds the objects too, so that their ids stay theirs

    def memory(self, source: Strategy | Memory, where: str) -> dict[str, Any]:
        own = source.attributes if isinstance(source, Memory) else vars(source)
        out: dict[str, Any] = {"kind": where.rpartition("/")[2], "attributes": {}, "inner": {}}
        out["unsaved"] = list(source.unsaved) if isinstance(source, Memory) else []
        for name, value in list(own.items()):
            path = f"{where}.{name}"
            if isinstance(value, Strategy | Memory):
                kind = value.kind if isinstance(value, Memory) else type(value).__name__
                if id(value) not in self.seen:
                    self.seen[id(value)] = (path, value)
                    out["inner"][name] = self.memory(value, f"{path}/{kind}")
                continue
            blobs, seen = len(self.blobs), len(self.seen)
            try:
                skeleton = self.value(value, path)
            except (_NotUnderstoodError, RecursionError):
                _cut(self.blobs, blobs)
                _cut(self.seen, seen)
                if not isinstance(value, _FUNCTIONS):
                    out["unsaved"].append(path)
                continue
            if len(self.blobs) == blobs:
                self.plain[path] = skeleton
                if path in self.before and self.before[path] == skeleton:
                    continue
            out["attributes"][name] = skeleton
        return out

    def value(self, value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is bytes:
            return {_TAG: "bytes", "blob": self.blob(value)}
        if isinstance(value, np.generic) and value.dtype.kind in _NUMPY_KINDS:
            return {_TAG: "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex()}
        if value is self.live:
            return {_TAG: "model"}
        if id(value) in self.seen:
            return {_TAG: "same", "as": self.seen[id(value)][0]}
        self.seen[id(value)] = (where, value)
        if kind is ArrayRecord:
            return self.record(value, where)
        for tag, known in _LISTS.items():
            if kind is known:
                return {_TAG: tag, "items": [self.value(v, f"{where}[{i}]") for i, v in enumerate(value)]}
        for tag, known in _DICTS.items():
            if kind is known:
                items = enumerate(value.items())
                return {
                    _TAG: tag,
                    "items": [[self.key(k), self.value(v, f"{where}[{i}]")] for i, (k, v) in items],
                }
        return self.array(value)

    def key(self, key: Any) -> Any:
        if key is None or type(key) in (bool, int, float, str):
            return key
        if type(key) is tuple:
            return [self.key(k) for k in key]
        raise _NotUnderstoodError

    def record(self, record: ArrayRecord, where: str) -> dict[str, Any]:
        items = [[n, self.value(a, f"{where}[{i}]")] for i, (n, a) in enumerate(record.items())]
        return {_TAG: "record", "items": items}

    def array(self, value: Any) -> dict[str, Any]:
        if type(value) is Array:
            about = {"dtype": value.dtype, "shape": list(value.shape), "stype": value.stype}
            return {_TAG: "array", **about, "blob": self.blob(value.data)}
        if type(value) is np.ndarray and value.dtype.kind in _NUMPY_KINDS:
            about = {"dtype": value.dtype.str, "shape": list(value.shape)}
            return {_TAG: "numpy", **about, "blob": self.blob(value.tobytes())}
        if (
            type(value) is torch.Tensor
            and dtype_name(value.dtype) in SIGNATURE_DTYPES
            and not value.is_sparse
        ):
            about = {
                "dtype": dtype_name(value.dtype),
                "shape": list(value.shape),
                "device": str(value.device),
            }
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            return {_TAG: "torch", **about, "blob": self.blob(flat.numpy().tobytes())}
        raise _NotUnderstoodError

    def blob(self, data: bytes) -> str:
        name = str(len(self.blobs))
        self.blobs[name] = np.frombuffer(data, np.uint8)
        return name


def _cut(items: dict[Any, Any], size: int) -> None:
    while len(items) > size:
        items.popitem()


# --------------------------------------------------------------------------- reading
def read(data: bytes, source: str, *, live: ArrayRecord | None = None) -> tuple[Memory, ArrayRecord | None]:
    """What `write` wrote.

    Args:
        data: The file's bytes.
        source: Names the file in messages.
        live: What stands for the current global model where the file does not hold its values.

    Returns:
        What the strategy remembered, and the model if its values are in the file. Where the strategy held the
        model itself, the memory holds that very object (or ``live``).

    Raises:
        CorruptCheckpointError: If the bytes are nothing that `write` writes.
    """
    try:
        blobs = safetensors.numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEADER])
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r}, this version reads {FORMAT!r}")
        reader = _Reader(blobs, live)
        model = None
        if head["model"] is not None:
            model = reader.live = reader.value(head["model"], "model")
        memory = reader.memory(head["strategy"], str(head["strategy"]["kind"]))
        if model is not None and not isinstance(model, ArrayRecord):
            raise ValueError("its model is no ArrayRecord")
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,  # torch's, and RecursionError
    ) as e:
        raise CorruptCheckpointError(
            f"{source} is no snapshot of a strategy ({type(e).__name__}: {e}). Delete it to go on from the "
            "stored model with a fresh state of the strategy"
        ) from e
    return memory, model


class _Reader:
    def __init__(self, blobs: Mapping[str, np.ndarray[Any, Any]], live: ArrayRecord | None) -> None:
        self.blobs, self.live = blobs, live
        self.seen: dict[str, Any] = {}

    def memory(self, plain: Mapping[str, Any], where: str) -> Memory:
        out = Memory(str(plain["kind"]), unsaved=[str(p) for p in plain["unsaved"]])
        for name, skeleton in plain["attributes"].items():
            out.attributes[name] = self.value(skeleton, f"{where}.{name}")
        for name, inner in plain["inner"].items():
            out.attributes[name] = self.memory(inner, f"{where}.{name}/{inner['kind']}")
        return out

    def value(self, plain: Any, where: str) -> Any:
        if not isinstance(plain, dict):
            return plain
        tag = plain[_TAG]
        if tag == "model":
            return self.live
        if tag == "same":
            return self.seen[plain["as"]]
        if tag == "bytes":
            return self.bytes(plain)
        if tag == "scalar":
            return np.frombuffer(bytes.fromhex(plain["hex"]), _numpy_dtype(plain))[0]
        out = self.container(tag, plain["items"], where) if "items" in plain else self.array(tag, plain)
        self.seen[where] = out
        return out

    def container(self, tag: str, items: list[Any], where: str) -> Any:
        if tag in _LISTS:
            made: Any = []
            self.seen[where] = made  # before its items: one of them may hold the list itself
            made += [self.value(v, f"{where}[{i}]") for i, v in enumerate(items)]
            return tuple(made) if tag == "tuple" else made
        made = ArrayRecord() if tag == "record" else _DICTS[tag]()
        self.seen[where] = made
        for i, (key, value) in enumerate(items):
            made[_key(key)] = self.value(value, f"{where}[{i}]")
        return made

    def array(self, tag: str, plain: Mapping[str, Any]) -> Any:
        shape = tuple(int(s) for s in plain["shape"])
        data = self.bytes(plain)
        if tag == "array":
            return Array(str(plain["dtype"]), shape, str(plain["stype"]), data)
        if tag == "numpy":
            made = (
                np.frombuffer(bytearray(data), _numpy_dtype(plain))
                if data
                else np.empty(0, _numpy_dtype(plain))
            )
            return made.reshape(shape)
        if tag != "torch":
            raise ValueError(f"it holds a value of the unknown kind {tag!r}")
        dtype, device = SIGNATURE_DTYPES[plain["dtype"]], torch.device(str(plain["device"]))
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensor = flat.reshape(shape)
        return tensor.to(device) if device.type != "cuda" or torch.cuda.is_available() else tensor

    def bytes(self, plain: Mapping[str, Any]) -> bytes:
        return self.blobs[plain["blob"]].tobytes()


def _numpy_dtype(plain: Mapping[str, Any]) -> np.dtype[Any]:
    dtype = np.dtype(str(plain["dtype"]))
    if dtype.kind not in _NUMPY_KINDS:
        raise ValueError(f"it holds an array of dtype {dtype}")
    return dtype


def _key(key: Any) -> Any:
    return tuple(_key(k) for k in key) if isinstance(key, list) else key


# --------------------------------------------------------------------------- restoring
def restore(strategy: Strategy, memory: Memory) -> None:
    """Give a strategy what it remembered; everything is checked before anything is set.

    Raises:
        ModelMismatchError: If the strategy, or one that it wraps, is of another class.
    """
    if memory.empty:
        return
    _check(strategy, memory)
    _set(strategy, memory)


def _check(strategy: Any, memory: Memory) -> None:
    if type(strategy).__name__ != memory.kind:
        raise ModelMismatchError(
            f"what the server remembers is that of {memory.kind}, the strategy is {type(strategy).__name__}"
        )
    for name, value in memory.attributes.items():
        if isinstance(value, Memory):
            _check(getattr(strategy, name, None), value)


def _set(strategy: Any, memory: Memory) -> None:
    for name, value in memory.attributes.items():
        if isinstance(value, Memory):
            _set(getattr(strategy, name), value)
        else:
            setattr(strategy, name, value)
