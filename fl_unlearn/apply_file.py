"""One update, one checkpoint's file: only the bytes of the tensors that the update touches are read.

Where a file can be changed in place and little of it changes, the successor is the list of those bytes;
otherwise the file is copied once with the changes made on the way, a segment in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import IO

import numpy as np
import torch

from fl_unlearn.dampen import DampeningUpdate, change_flat, check_fits
from fl_unlearn.files import Bytes, read_into
from fl_unlearn.store import CheckpointStore, Runs, changed
from fl_unlearn.tensor_file import FileInfo, Layout, Segment, read_layout
from fl_unlearn.types import CorruptCheckpointError, TensorSpec, dtype_name
from fl_unlearn.update import Change

SHARE_IN_PLACE = 0.25
"""In place, changed bytes are written twice (prepared, then put in place): above this share, copying wins."""

_GAP = 512  # runs closer than this are written as one
_PIECE = 8 << 20  # bytes of an unchanged tensor copied at a time


@dataclass(frozen=True)
class Job:
    """One checkpoint that an update is to be applied to.

    Attributes:
        name: The model.
        node_id: Its node.
        before: What the ledger says of its file.
    """

    name: str
    node_id: int
    before: FileInfo


@dataclass(frozen=True)
class Prepared:
    """The prepared successor of one checkpoint; None as ``after``: it had the update already.

    Attributes:
        job: What was asked.
        after: What the file will be.
        written: Bytes written so far; those in place are written once more by promoting.
        in_place: Whether it is a list of changes.
    """

    job: Job
    after: FileInfo | None
    written: int = 0
    in_place: bool = False


Task = tuple[Job, DampeningUpdate]


def prepare(store: CheckpointStore, job: Job, update: DampeningUpdate) -> Prepared:
    """Prepare a checkpoint's successor; the checkpoint itself is not changed.

    Raises:
        CorruptCheckpointError: If the header, or a tensor that is read, does not match the ledger.
        UpdateError: If the update does not fit the model.
        StoreError: If the successor cannot be written.
    """
    with store.reader(job.name) as file:
        work = _Work(store, job, update, file)
        if update.digest in work.layout.applied:
            return Prepared(job, None)
        return work.prepare()


class _Work:
    def __init__(self, store: CheckpointStore, job: Job, update: DampeningUpdate, file: IO[bytes]) -> None:
        self.store, self.job, self.update, self.file = store, job, update, file
        self.where, self.buffer = store.where(job.name), bytearray()
        try:
            self.layout: Layout = read_layout(file, self.where)
        except CorruptCheckpointError as e:
            raise changed(self.where, None, job.before.digest) from e
        segments = job.before.segments
        self.digests = [segments[i : i + 32] for i in range(0, len(segments), 32)]
        self._check(0, sha256(self.layout.header).digest())
        check_fits(update, _signature(self.layout.segments))
        self.header = self.layout.header_with((*self.layout.applied, update.digest))
        self.after = [sha256(self.header).digest(), *self.digests[1:]]

    def prepare(self) -> Prepared:
        runs = self._runs_in_place()
        if runs is None:
            self.store.stage_parts(self.job.name, self._copy())
            after = FileInfo.of(self.after, self.layout.size - len(self.layout.header) + len(self.header))
            return Prepared(self.job, after, after.size)
        self.store.stage_runs(self.job.name, runs)
        written = sum(len(data) + 16 for _, data in runs) + 32
        return Prepared(self.job, FileInfo.of(self.after, self.layout.size), written, in_place=True)

    def _runs_in_place(self) -> Runs | None:
        """The bytes that change; None when the file had better be copied."""
        if not self.store.files.in_place or len(self.header) != len(self.layout.header):
            return None
        limit = SHARE_IN_PLACE * self.layout.size - len(self.header)
        touched = [
            (number, segment, self.update.changes[segment.name])
            for number, segment in enumerate(self.layout.segments, start=1)
            if segment.name in self.update.changes
        ]
        spans = [_spans(change, segment) for _, segment, change in touched]
        if sum(end - start for some in spans for start, end in some) > limit:
            return None
        runs: Runs = [(0, self.header)]
        for (number, segment, change), some in zip(touched, spans, strict=True):
            data = self._changed(number, segment, change)
            runs += [(segment.start + start, bytes(data[start:end])) for start, end in some]
        return runs

    def _copy(self) -> Iterator[Bytes]:
        """The successor's bytes, from the first to the last; the next piece overwrites one."""
        yield self.header
        for number, segment in enumerate(self.layout.segments, start=1):
            if (change := self.update.changes.get(segment.name)) is not None:
                yield self._changed(number, segment, change)
                continue
            sha = sha256()
            for at in range(0, segment.size, _PIECE):
                piece = self._read(segment.start + at, min(_PIECE, segment.size - at))
                sha.update(piece)
                yield piece
            self._check(number, sha.digest())

    def _changed(self, number: int, segment: Segment, change: Change) -> memoryview:
        """A tensor's bytes after the update; checked before."""
        data = self._read(segment.start, segment.size)
        self._check(number, sha256(data).digest())
        change_flat(torch.frombuffer(data, dtype=segment.dtype or torch.uint8), change)
        self.after[number] = sha256(data).digest()
        return data

    def _read(self, start: int, size: int) -> memoryview:
        """Bytes of the file, in a buffer that the next call uses again: new memory is dear."""
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        view = memoryview(self.buffer)[:size]
        self.file.seek(start)
        return view[: read_into(self.file, view)]

    def _check(self, number: int, digest: bytes) -> None:
        if digest != self.digests[number]:
            what = "header" if number == 0 else f"tensor {self.layout.segments[number - 1].name!r}"
            raise changed(f"{self.where} ({what})", digest.hex(), self.digests[number].hex())


def _spans(change: Change, segment: Segment) -> list[tuple[int, int]]:
    """The bytes of a tensor that change, near ones together: (start, end), ascending."""
    if change.erasure is not None or change.entry is None:
        return [(0, segment.size)]
    size = _item(segment)
    starts = change.entry.indices.numpy().astype(np.int64) * size
    breaks = np.flatnonzero(np.diff(starts) > size + _GAP)
    first = starts[np.concatenate(([0], breaks + 1))]
    last = starts[np.concatenate((breaks, [len(starts) - 1]))] + size
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _item(segment: Segment) -> int:
    return segment.dtype.itemsize if segment.dtype else 1


def _signature(segments: tuple[Segment, ...]) -> dict[str, TensorSpec]:
    return {s.name: TensorSpec(s.shape, dtype_name(s.dtype) if s.dtype else "unknown") for s in segments}
