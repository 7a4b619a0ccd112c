"""One model as one standard safetensors file, read and changed by parts.

A file consists of segments: its header (8 bytes of length, then JSON), then each tensor's bytes in the order
of their offsets, without gaps. The digest of a file is the SHA-256 over the SHA-256 digests of its segments:
it covers every byte, and follows from the digests alone when some segments change and the rest does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

from fl_unlearn.files import Bytes, read_exactly
from fl_unlearn.types import CorruptCheckpointError, StateDict

_KEY = "fl_unlearn"
_METADATA = "__metadata__"
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_UPDATES_AHEAD = 16
_BYTES_AN_UPDATE = 70  # 64 hexadecimal digits, escaped quotes, a comma, a blank
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class FileInfo:
    """What a checkpoint's file is, as the ledger keeps it.

    Attributes:
        digest: The file's digest (hexadecimal), as defined above.
        size: Bytes.
        segments: The segments' SHA-256 digests, 32 bytes each, header first; their SHA-256 is ``digest``.
    """

    digest: str
    size: int
    segments: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, segments: Iterable[bytes], size: int) -> FileInfo:
        """From the digests of the segments."""
        joined = b"".join(segments)
        return cls(sha256(joined).hexdigest(), size, joined)


@dataclass(frozen=True)
class Checkpoint:
    """One model as read from disk.

    Attributes:
        state: Its tensors, on the CPU.
        applied: Digests of the updates applied to it so far; they travel in the same file as the tensors,
            so the two can never disagree.
        info: Digest and size of the file.
    """

    state: dict[str, torch.Tensor]
    applied: tuple[str, ...]
    info: FileInfo


@dataclass(frozen=True)
class Segment:
    """One tensor's place in a file.

    Attributes:
        name: The tensor's name.
        dtype: Its dtype; None for one that torch, or this version, does not know.
        shape: Its shape.
        start: Where its bytes begin, counted from the beginning of the file.
        size: How many bytes it has.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """The header of a file.

    Attributes:
        header: Its bytes, the 8 of the length included.
        fields: What it says, parsed.
        segments: The tensors in the order of their bytes.
        applied: Digests of the updates applied so far.
        size: Of the whole file, in bytes.
    """

    header: bytes
    fields: dict[str, Any] = field(repr=False)
    segments: tuple[Segment, ...]
    applied: tuple[str, ...]
    size: int

    @property
    def ours(self) -> bool:
        """Whether `encode` wrote it, and no other program."""
        return _KEY in (self.fields.get(_METADATA) or {})

    def header_with(self, applied: tuple[str, ...]) -> bytes:
        """The header with other applied updates: of the same length where they fit into its padding."""
        fields = {**self.fields, _METADATA: {**self.fields.get(_METADATA, {}), _KEY: _applied_json(applied)}}
        return _render(fields, room=len(self.header) - 8)


def encode(state: StateDict, applied: tuple[str, ...] = ()) -> bytes:
    """A model as the bytes of one safetensors file (tied tensors are written under each name)."""
    header, tensors = encode_parts(state, applied)
    parts: list[Bytes] = [header, *tensors.values()]
    return b"".join(parts)


def encode_parts(state: StateDict, applied: tuple[str, ...] = ()) -> tuple[bytes, dict[str, memoryview]]:
    """As `encode`, in parts, which need not be joined to be written: the header, then each tensor's bytes.

    The bytes are those of ``state`` itself where its tensors are contiguous and on the CPU; their order is
    that of the file. The header ends in blanks, as the format allows: room for further updates to be noted
    in place.
    """
    # From stand-ins of one element, safetensors tells order and dtypes without copying a whole model.
    # A single metadata key: with several, their order in the file, and so the digest, would be random.
    standins = {n: torch.empty(1, dtype=t.dtype) for n, t in state.items()}
    data = safetensors.torch.save(standins, metadata={_KEY: _applied_json(applied)})
    fields = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors: dict[str, memoryview] = {}
    at = 0
    for name in sorted(state, key=lambda n: int(fields[n]["data_offsets"][0])):
        flat = state[name].detach().cpu().contiguous().reshape(-1)
        tensors[name] = flat.view(torch.uint8).numpy().data
        fields[name].update(shape=list(state[name].shape), data_offsets=[at, at + len(tensors[name])])
        at += len(tensors[name])
    return _render(fields, room=0), tensors


def decode(data: bytes | bytearray, source: str) -> Checkpoint:
    """Read the bytes of one safetensors file.

    Raises:
        CorruptCheckpointError: If they are not one; ``source`` names the file in the message.
    """
    layout = parse(data, len(data), source)
    try:
        state = safetensors.torch.load(bytes(data))
    except (safetensors.SafetensorError, ValueError, LookupError, RuntimeError) as e:
        raise _corrupt(source, e) from e
    return Checkpoint(state, layout.applied, info_of(layout, data))


def info_of(layout: Layout, data: bytes | bytearray) -> FileInfo:
    """Digest and size of a whole file."""
    view = memoryview(data)
    parts = [sha256(layout.header), *(sha256(view[s.start : s.start + s.size]) for s in layout.segments)]
    return FileInfo.of((p.digest() for p in parts), len(data))


def read_layout(file: IO[bytes], source: str) -> Layout:
    """Read the header of an open file, and nothing else of it.

    Raises:
        CorruptCheckpointError: If it is no safetensors file, or its size is another than the header says.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = bytes(read_exactly(file, min(8, size)))
    length = min(int.from_bytes(head, "little"), size)
    return parse(head + bytes(read_exactly(file, min(length, _LARGEST_HEADER))), size, source)


def parse(data: bytes | bytearray, size: int, source: str) -> Layout:
    """Read the header at the beginning of ``data``, which a file of ``size`` bytes starts with.

    Raises:
        CorruptCheckpointError: If it is no header of a safetensors file of that size.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise ValueError(f"its header cannot have {length} bytes in a file of {size}")
        fields = json.loads(bytes(data[8 : 8 + length]))
        metadata = fields.get(_METADATA) or {}
        applied = json.loads(metadata.get(_KEY, "{}")).get("applied", [])
        if not isinstance(applied, list) or any(not isinstance(d, str) for d in applied):
            raise ValueError(f"its list of updates is {applied!r}")
        segments = _segments(fields, 8 + length, size)
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError) as e:
        raise _corrupt(source, e) from e
    return Layout(bytes(data[: 8 + length]), fields, segments, tuple(applied), size)


def _segments(fields: dict[str, Any], start: int, size: int) -> tuple[Segment, ...]:
    places = []
    for name, entry in fields.items():
        if name != _METADATA:
            begin, end = map(int, entry["data_offsets"])
            places.append((begin, end, name, entry))
    segments, at = [], 0
    for begin, end, name, entry in sorted(places, key=lambda p: p[:3]):
        dtype, shape = _DTYPES.get(entry["dtype"]), tuple(map(int, entry["shape"]))
        if begin != at or end < begin or (dtype and math.prod(shape) * dtype.itemsize != end - begin):
            raise ValueError(f"its tensor {name!r} cannot be at bytes {begin} to {end}")
        segments.append(Segment(name, dtype, shape, start + begin, end - begin))
        at = end
    if start + at != size:
        raise ValueError(f"it has {size} bytes where its header says {start + at}")
    return tuple(segments)


def _render(fields: dict[str, Any], room: int) -> bytes:
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > room:
        room = len(text) + _UPDATES_AHEAD * _BYTES_AN_UPDATE
    room = -(-room // 8) * 8  # readers map the tensors' bytes, which should be aligned
    return room.to_bytes(8, "little") + text.ljust(room)


def _applied_json(applied: tuple[str, ...]) -> str:
    return json.dumps({"applied": list(applied)})


def _corrupt(source: str, why: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{source} is truncated or not a safetensors file ({why})")
