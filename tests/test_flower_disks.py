"""Stores of others, damaged checkpoints, full disks: a clear error, and all is as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import federation as fed
import numpy as np
import pytest
from federation_checks import THREE, unchanged
from flwr.app import Array, ArrayRecord

from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    CorruptCheckpointError,
    ModelMismatchError,
    RequestError,
    StoreError,
    StoreFullError,
)


def test_store_of_another_model(tmp_path: Path) -> None:
    strategy, grid, _ = fed.trained(tmp_path, rounds=1)
    other = ArrayRecord({"head.weight": Array(np.zeros((4, 8), np.float32))})
    with unchanged(strategy, other, ModelMismatchError, "is the store of another model: missing 'head.bias'"):
        strategy.forget(grid, THREE, other)
    again = UnlearningStrategy(fed.fedavg(), store=strategy.store)
    with pytest.raises(ModelMismatchError, match="Use a store of its own"):
        again.start(grid, other, num_rounds=1)


def test_store_of_another_run(tmp_path: Path) -> None:
    _, grid, result = fed.trained(tmp_path / "a", rounds=1)
    with RunStore(tmp_path / "b") as empty:
        strategy = UnlearningStrategy(fed.fedavg(), store=empty)
        with unchanged(strategy, result.arrays, RequestError, "contributed no update recorded"):
            strategy.forget(grid, THREE, result.arrays)
        with pytest.raises(StoreError, match="holds no global model; train with this store first"):
            strategy.forget(grid, THREE)


@pytest.mark.parametrize("how", ["truncated", "tampered", "missing", "swapped"])
@pytest.mark.parametrize("which", ["r0001-global", "r0003-global"])
def test_damaged_checkpoint(how: str, which: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=3)
    path = strategy.store.checkpoints.path(which)
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-5])
    elif how == "tampered":
        path.write_bytes(data[:-5] + b"\x01\x02\x03\x04\x05")
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(strategy.store.checkpoints.path("r0002-global").read_bytes())
    match = (
        "is missing; restore it"
        if how == "missing"
        else "truncated or changed from outside: (its digest|it is no)"
    )
    with unchanged(strategy, result.arrays, CorruptCheckpointError, match):
        strategy.forget(grid, THREE, result.arrays)


class FullDisk:
    """Lets some writes through, then none."""

    def __init__(self, allowed: int) -> None:
        self.left, self.fsync = allowed, os.fsync

    def __call__(self, fd: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(fd)


@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 4])
def test_disk_full_while_applying(allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=3)
    with unchanged(strategy, result.arrays, StoreFullError, "no room left while writing .* Free some space"):
        monkeypatch.setattr(os, "fsync", FullDisk(allowed))
        strategy.forget(grid, THREE, result.arrays)
    monkeypatch.undo()
    assert (
        not list(tmp_path.rglob("*.staged"))
        + list(tmp_path.rglob("*.redo"))
        + list(tmp_path.rglob("*.partial"))
    )
    assert strategy.forget(grid, THREE, result.arrays).committed


def test_disk_full_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    monkeypatch.setattr(os, "fsync", FullDisk(6))  # two a round, and two for making the folder
    with pytest.raises(StoreFullError, match="no room left while writing"):
        strategy.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=3)
    assert strategy.store.kept() == {"r0000-initial", "r0001-global"} == strategy.store.checkpoints.names()
    assert strategy.store.umig.last_round() == 1
