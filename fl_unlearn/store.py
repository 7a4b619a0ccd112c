"""Checkpoints on disk: one standard safetensors file a model, named by its node, written atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import safetensors
import safetensors.torch
import torch

from fl_unlearn.types import CorruptCheckpointError, SettingsError, StateDict, StoreError, StoreFullError

SUFFIX = ".safetensors"
STAGED = ".staged"
PARTIAL = ".partial"
_HEADER = "fl_unlearn"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class FileInfo:
    """SHA-256 (hexadecimal) and size in bytes of a file as written."""

    digest: str
    size: int


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


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise StoreFullError(
                f"no room left while writing {path} ({e.strerror}); the file was not changed. "
                "Free some space or choose a smaller keep policy, then repeat"
            ) from e
        raise StoreError(f"cannot write {path}: {e.strerror or e}") from e


def write_atomically(path: Path, data: bytes) -> FileInfo:
    """Write a file so that after a crash it is either absent (or the old one), or whole.

    Raises:
        StoreFullError: If the disk is full; nothing is left behind.
        StoreError: If the file cannot be written for another reason.
    """
    partial = path.with_name(path.name + PARTIAL)
    with _disk_errors(path):
        try:
            with open(partial, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return FileInfo(hashlib.sha256(data).hexdigest(), len(data))


def remove_partial(folder: Path) -> None:
    """Remove what a crash left of files that were being written into ``folder``."""
    for leftover in folder.glob("*" + PARTIAL):
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def encode(state: StateDict, applied: tuple[str, ...] = ()) -> bytes:
    """A model as the bytes of one safetensors file (tied tensors are written under each name)."""
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state.items()}
    # A single metadata key: with several, their order in the file, and so the digest, would be random.
    header = json.dumps({"applied": list(applied)}, sort_keys=True)
    return safetensors.torch.save(tensors, metadata={_HEADER: header})


def decode(data: bytes, source: str) -> Checkpoint:
    """Read the bytes of one safetensors file.

    Raises:
        CorruptCheckpointError: If they are not one; ``source`` names the file in the message.
    """
    try:
        state = safetensors.torch.load(data)
        head: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        applied = json.loads((head.get("__metadata__") or {}).get(_HEADER, "{}")).get("applied", [])
        if not isinstance(applied, list) or any(not isinstance(d, str) for d in applied):
            raise ValueError(f"its list of updates is {applied!r}")
    except (safetensors.SafetensorError, ValueError, AttributeError, LookupError, RuntimeError) as e:
        raise CorruptCheckpointError(f"{source} is truncated or not a safetensors file ({e})") from e
    return Checkpoint(state, tuple(applied), FileInfo(hashlib.sha256(data).hexdigest(), len(data)))


class CheckpointStore:
    """A folder of checkpoints.

    Args:
        folder: Where the files are; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of the model ``name``; characters that file systems dislike are percent-encoded."""
        return self.folder / (quote(name, safe="-_ ") + SUFFIX)

    def write(self, name: str, state: StateDict, applied: tuple[str, ...] = ()) -> FileInfo:
        """Write a model atomically.

        Raises:
            StoreFullError: If the disk is full; nothing is changed.
            StoreError: If the file cannot be written.
        """
        return write_atomically(self.path(name), encode(state, applied))

    def stage(self, name: str, state: StateDict, applied: tuple[str, ...]) -> FileInfo:
        """Write a model's successor beside it; `promote` puts it in place, `discard` takes it away."""
        return write_atomically(self._staged(name), encode(state, applied))

    def promote(self, name: str) -> None:
        """Put the staged successor in place of the model; does nothing when that was done before."""
        staged = self._staged(name)
        if staged.exists():
            with _disk_errors(staged):
                os.replace(staged, self.path(name))

    def sync(self) -> None:
        """Make what `promote` did last through a power cut."""
        with _disk_errors(self.folder):
            sync_folder(self.folder)

    def discard(self, name: str) -> None:
        """Remove the staged successor of a model, if there is one."""
        self._staged(name).unlink(missing_ok=True)

    def read(self, name: str, digest: str | None = None) -> Checkpoint:
        """Read a model, and check its digest when one is given.

        Raises:
            CorruptCheckpointError: If the file is missing, truncated, or does not have that digest.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError as e:
            raise CorruptCheckpointError(f"the checkpoint {path} is missing; restore it from a backup") from e
        except OSError as e:
            raise StoreError(f"cannot read {path}: {e.strerror or e}") from e
        found = hashlib.sha256(data).hexdigest()
        if digest is not None and found != digest:
            raise CorruptCheckpointError(
                f"the checkpoint {path} was truncated or changed from outside: its SHA-256 is {found[:12]}, "
                f"the ledger says {digest[:12]}. Restore it from a backup, or remove it with its ledger entry"
            )
        return decode(data, str(path))

    def applied(self, name: str) -> tuple[str, ...]:
        """Digests of the updates applied to a model, from the head of its file; no tensor is read.

        Raises:
            CorruptCheckpointError: If the file is missing, truncated or no safetensors file.
        """
        path = self.path(name)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                head = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            return tuple(map(str, head.get("applied", [])))
        except (OSError, safetensors.SafetensorError, ValueError, AttributeError, TypeError) as e:
            raise CorruptCheckpointError(f"{path} cannot be read as a safetensors file ({e})") from e

    def delete(self, name: str) -> None:
        """Remove a model's file, if there is one."""
        self.path(name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Names of the models that have a file."""
        return {unquote(p.name.removesuffix(SUFFIX)) for p in self.folder.glob("*" + SUFFIX)}

    def staged_names(self) -> set[str]:
        """Names of the models that have a staged successor."""
        end = SUFFIX + STAGED
        return {unquote(p.name.removesuffix(end)) for p in self.folder.glob("*" + end)}

    def _staged(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(path.name + STAGED)
