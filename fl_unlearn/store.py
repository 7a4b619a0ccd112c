"""Checkpoints: one standard safetensors file a model, named by its node, at any address.

A model's successor is prepared beside it, as a whole file (``.staged``) or as the bytes that change
(``.redo``), and `CheckpointStore.promote` puts it in place. Promoting can be repeated, so that whatever
interrupts it can be finished later.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from fl_unlearn.files import PARTIAL, Bytes, LocalFiles, open_files, read_exactly
from fl_unlearn.tensor_file import Checkpoint, FileInfo, decode, encode_parts, info_of, parse, read_layout
from fl_unlearn.types import CorruptCheckpointError, SettingsError, StateDict, StoreError

SUFFIX = ".safetensors"
STAGED = ".staged"
REDO = ".redo"
_WORTH_A_THREAD = 4 << 20  # bytes; below, starting one takes longer than hashing

Runs = list[tuple[int, bytes]]
"""Bytes to be written into a file: where, and what."""


@dataclass(frozen=True)
class KeepPolicy:
    """Which models a run keeps as checkpoints. The initial model is always kept.

    Attributes:
        aggregates: Keep the global models.
        client_updates: Keep the clients' updates too.
        every: Keep rounds whose number is a multiple of this; >= 1.
        byte_budget: Drop the oldest kept rounds when the checkpoints exceed this many bytes; None = no limit.
            The initial and the newest global model stay.
    """

    aggregates: bool = True
    client_updates: bool = False
    every: int = 1
    byte_budget: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingsError(f"keep every n-th round needs n >= 1, got {self.every}")
        if self.byte_budget is not None and self.byte_budget <= 0:
            raise SettingsError(f"a byte budget must be above 0, got {self.byte_budget}")

    def keeps(self, kind: str, round_: int) -> bool:
        """Whether a model of this kind and round is written to disk."""
        wanted = {"aggregate": self.aggregates, "client-update": self.client_updates}
        return kind not in wanted or (wanted[kind] and round_ % self.every == 0)


class CheckpointStore:
    """A folder of checkpoints.

    Args:
        address: Where the files are: a path, or an address that fsspec understands.
    """

    def __init__(self, address: str | Path) -> None:
        self.files = open_files(address)

    @property
    def address(self) -> str:
        """Where the files are."""
        return self.files.address

    @property
    def folder(self) -> Path:
        """The local folder; StoreError when the checkpoints are elsewhere."""
        if not isinstance(self.files, LocalFiles):
            raise StoreError(f"the checkpoints are at {self.address}, not in a local folder")
        return self.files.folder

    def path(self, name: str) -> Path:
        """The local file of the model ``name``."""
        return self.folder / file_name(name)

    def write(self, name: str, state: StateDict, applied: tuple[str, ...] = ()) -> FileInfo:
        """Write a model; its folder is not synced (`sync`).

        Raises:
            StoreFullError: If the disk is full; nothing is changed.
            StoreError: If the file cannot be written.
        """
        file = file_name(name)
        if not self.files.in_place:  # elsewhere a file comes into being when it is closed
            return self._write(file, state, applied)
        # Never torn under its own name: what is found there is a whole model, or somebody else's file.
        info = self._write(file + PARTIAL, state, applied)
        try:
            self.files.replace(file + PARTIAL, file)
        except BaseException:
            with suppress(StoreError):
                self.files.remove(file + PARTIAL)
            raise
        return info

    def _write(self, file: str, state: StateDict, applied: tuple[str, ...]) -> FileInfo:
        header, tensors = encode_parts(state, applied)
        size = len(header) + sum(map(len, tensors.values()))
        parts: list[Bytes] = [header, *(tensors[s.name] for s in parse(header, size, file).segments)]

        def digests() -> list[bytes]:
            return [sha256(part).digest() for part in parts]

        if size < _WORTH_A_THREAD:
            self.files.write(file, parts)
            return FileInfo.of(digests(), size)
        with ThreadPoolExecutor(1) as other:  # hashing and writing both take long, and both release the GIL
            hashing = other.submit(digests)
            self.files.write(file, parts)
        return FileInfo.of(hashing.result(), size)

    def stage_parts(self, name: str, parts: Iterable[Bytes]) -> None:
        """Write a model's successor beside it; `promote` puts it in place, `discard` takes it away."""
        self.files.remove(file_name(name) + REDO)  # one successor at a time, whatever failed before
        self.files.write(file_name(name) + STAGED, parts)

    def stage_runs(self, name: str, runs: Runs) -> None:
        """Prepare a model's successor as the bytes that change; only where ``files.in_place``."""
        self.files.remove(file_name(name) + STAGED)
        self.files.write(file_name(name) + REDO, (_pack(runs),))

    def promote(self, name: str) -> None:
        """Put the successor in place of the model; does nothing when that was done before.

        Raises:
            CorruptCheckpointError: If what was prepared was damaged since.
        """
        file = file_name(name)
        with suppress(FileNotFoundError):
            if self.files.in_place:
                with self.files.reader(file + REDO) as f:
                    runs = _unpack(f, file + REDO)
                try:
                    self.files.patch(file, runs)
                except StoreError as e:
                    if file in self.files.names():
                        raise
                    raise CorruptCheckpointError(
                        f"the checkpoint {self.where(name)} is missing, and an update of it is decided; "
                        "restore the file from a backup, and open the store again"
                    ) from e
                self.files.remove(file + REDO)
        with suppress(FileNotFoundError):
            self.files.reader(file + STAGED).close()
            self.files.replace(file + STAGED, file)

    def successor(self, name: str) -> FileInfo:
        """What a model's file will be when what is prepared is in place; how it is, when nothing is prepared.

        Raises:
            CorruptCheckpointError: If the file, or what is prepared, is damaged or missing.
        """
        file = file_name(name)
        with suppress(FileNotFoundError), self.files.reader(file + STAGED) as f:
            return _info(_content(f), file + STAGED)
        with self.reader(name) as f:
            data = _content(f)
        with suppress(FileNotFoundError), self.files.reader(file + REDO) as f:
            for offset, new in _unpack(f, file + REDO):
                data[offset : offset + len(new)] = new
        return _info(data, self.where(name))

    def sync(self) -> None:
        """Make names last through a power cut: of files written, staged, promoted and deleted."""
        self.files.sync()

    def discard(self, name: str) -> None:
        """Remove the prepared successor of a model, if there is one."""
        for suffix in (STAGED, REDO):
            self.files.remove(file_name(name) + suffix)

    def reader(self, name: str) -> IO[bytes]:
        """Open a model's file for reading.

        Raises:
            CorruptCheckpointError: If it is missing.
            StoreError: If it cannot be read, or is a link out of the store.
        """
        where = self.where(name)
        try:
            return self.files.reader(file_name(name))
        except FileNotFoundError as e:
            raise CorruptCheckpointError(
                f"the checkpoint {where} is missing; restore it from a backup"
            ) from e
        except OSError as e:
            raise StoreError(f"cannot read {where}: {e.strerror or e}; it must be a regular file") from e

    def read(self, name: str, digest: str | None = None) -> Checkpoint:
        """Read a model, and check its digest when one is given.

        Raises:
            CorruptCheckpointError: If the file is missing, truncated, or does not have that digest.
        """
        where = self.where(name)
        with self.reader(name) as f:
            data = _content(f)
        try:
            found = _info(data, where).digest
        except CorruptCheckpointError as e:
            if digest is None:
                raise
            raise changed(where, None, digest) from e
        if digest is not None and found != digest:
            raise changed(where, found, digest)
        return decode(data, where)

    def applied(self, name: str) -> tuple[str, ...]:
        """Digests of the updates applied to a model, from the head of its file; no tensor is read.

        Raises:
            CorruptCheckpointError: If the file is missing, truncated or no safetensors file.
        """
        with self.reader(name) as f:
            return read_layout(f, self.where(name)).applied

    def ours(self, name: str) -> bool:
        """Whether a model's file was written here, and not by another program."""
        try:
            with self.reader(name) as f:
                return read_layout(f, name).ours
        except StoreError:
            return False

    def delete(self, name: str) -> None:
        """Remove a model's file, if there is one."""
        self.files.remove(file_name(name))

    def names(self) -> set[str]:
        """Names of the models that have a file."""
        return self._ending(SUFFIX)

    def staged_names(self) -> set[str]:
        """Names of the models that have a prepared successor."""
        return self._ending(SUFFIX + STAGED) | self._ending(SUFFIX + REDO)

    def remove_partial(self) -> None:
        """Remove what a crash left of models that were being written."""
        for name in self.files.names():
            if name.endswith(PARTIAL):
                self.files.remove(name)

    def where(self, name: str) -> str:
        """A model's file, for messages."""
        return f"{self.address}/{file_name(name)}"

    def _ending(self, end: str) -> set[str]:
        return {unquote(n.removesuffix(end)) for n in self.files.names() if n.endswith(end)}


def file_name(name: str) -> str:
    """The file of the model ``name``; characters that file systems dislike are percent-encoded."""
    return quote(name, safe="-_ ") + SUFFIX


def changed(where: str, found: str | None, expected: str) -> CorruptCheckpointError:
    """The error for a checkpoint that is not what the ledger says; ``found`` None: no safetensors file."""
    what = f"its digest is {found[:12]}" if found else "it is no safetensors file"
    return CorruptCheckpointError(
        f"the checkpoint {where} was truncated or changed from outside: {what}, the ledger says "
        f"{expected[:12]}. Restore it from a backup, or remove it with its ledger entry"
    )


def _content(file: IO[bytes]) -> bytearray:
    size = file.seek(0, 2)
    file.seek(0)
    return read_exactly(file, size)


def _info(data: bytearray, where: str) -> FileInfo:
    return info_of(parse(data, len(data), where), data)


def _pack(runs: Runs) -> bytes:
    """SHA-256 of the rest, then for each run its offset, its length and its bytes."""
    body = b"".join(o.to_bytes(8, "little") + len(d).to_bytes(8, "little") + d for o, d in runs)
    return sha256(body).digest() + body


def _unpack(file: IO[bytes], where: str) -> Runs:
    data = memoryview(file.read())
    if sha256(data[32:]).digest() != bytes(data[:32]):
        raise CorruptCheckpointError(f"{where} was damaged; restore the folder from a backup")
    runs, at = [], 32
    while at < len(data):
        offset, size = (int.from_bytes(data[i : i + 8], "little") for i in (at, at + 8))
        runs.append((offset, bytes(data[at + 16 : at + 16 + size])))
        at += 16 + size
    return runs
