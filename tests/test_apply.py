"""One update on every affected checkpoint: exactly what one by one would give, or nothing at all."""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

from fl_unlearn import apply
from fl_unlearn import store as store_module
from fl_unlearn.apply import stage
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy, decode
from fl_unlearn.types import (
    AuditError,
    CorruptCheckpointError,
    StoreError,
    StoreFullError,
    TensorSpec,
    UpdateError,
)

A, B = runs.update(0), runs.update(1)


def files(store: RunStore) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.checkpoints.folder.iterdir()}


def one_by_one(tensor: torch.Tensor, update: DampeningUpdate, name: str) -> torch.Tensor:
    """Element by element, in Python."""
    values = tensor.flatten().tolist()
    if name in update.entries:
        entry = update.entries[name]
        for i, factor in zip(entry.indices.tolist(), entry.factors.tolist(), strict=True):
            values[i] *= factor
    return torch.tensor(values, dtype=torch.float64).to(tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("workers", [1, 2, 7, None])
def test_equals_one_model_after_the_other(workers: int | None, tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=3) as store:
        before = runs.contents(store)
        names = [n for n in before if n not in ("g0", "r1-0")]
        staged = stage(store, dict.fromkeys(names, A), A, workers=workers)
        assert staged.skipped == []
        in_order = [n.name for n in store.umig if n.name in names]
        assert [f.node.name for f in staged.files] == in_order
        assert {n: store.load(n).applied for n in before} == dict.fromkeys(before, ())  # nothing changed yet
        staged.commit({"classes": [3]}, ["1", "0"])
        runs.assert_sound(store)
        for name, (applied, state) in runs.contents(store).items():
            old = before[name][1]
            assert applied == ((A.digest,) if name in names else ())
            expected = {n: one_by_one(t, A, n) if name in names else t for n, t in old.items()}
            runs.assert_same(state, expected)
        (operation,) = store.operations.all()
        assert (operation.digest, operation.client_update) == (A.digest, A.digest)
        assert operation.request == {"classes": [3]}
        assert store.operations.outstanding() == {"0": [operation], "1": [operation]}
        store.operations.settle(A.digest, "0")
        assert store.operations.outstanding() == {"1": [operation]}
        assert store.umig.node("g3").digest != store.load("g3").info.digest  # the node's is as first written


def test_more_workers_give_the_same_bytes(tmp_path: Path) -> None:
    results = []
    for workers in (1, 8):
        with runs.filled(tmp_path / str(workers), rounds=8) as store:
            stage(store, dict.fromkeys(sorted(store.kept()), A), A, workers=workers).commit({})
            results.append(files(store))
    assert len(results[0]) == 25
    assert results[0] == results[1]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        updates = dict.fromkeys(sorted(store.kept()), A)
        stage(store, updates, A).commit({})
        after = files(store)
        again = stage(store, updates, A)
        assert again.files == []
        assert sorted(again.skipped) == sorted(updates)
        again.commit({})
        assert files(store) == after
        assert len(store.operations.all()) == 1
    with RunStore(tmp_path) as store:
        runs.assert_sound(store)
        assert files(store) == after


@pytest.mark.parametrize("last", [A, B], ids=["first", "second"])
def test_an_operation_is_taken_up_again_after_another(last: DampeningUpdate, tmp_path: Path) -> None:
    """It changes what it had missed, and leaves alone what it and a later one changed before."""
    with runs.filled(tmp_path) as store:
        old = runs.contents(store)
        for update in (A, B):
            stage(store, {"g1": update, "g2": update}, update).commit({}, ["0"])
        once = files(store)
        staged = stage(store, dict.fromkeys(["g1", "g2", "r2-0"], last), last)
        assert [f.node.name for f in staged.files] == ["r2-0"]
        staged.commit({}, ["1"])
        runs.assert_sound(store)
        changed = {n for n, data in files(store).items() if data != once[n]}
        assert changed == {"r2-0.safetensors"}
        assert store.load("g1").applied == (A.digest, B.digest)
        assert store.load("r2-0").applied == (last.digest,)
        runs.assert_same(store.load("g2").state, apply_update(apply_update(old["g2"][1], A), B))
        assert [o.digest for o in store.operations.all()] == [A.digest, B.digest]
        assert {c: len(o) for c, o in store.operations.outstanding().items()} == {"0": 2, "1": 1}
    with RunStore(tmp_path) as store:
        runs.assert_sound(store)


def test_each_model_can_have_its_own_update(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        old = runs.contents(store)
        updates = {"g1": A, "g2": B, "r2-1": A}
        staged = stage(store, updates, B)
        assert staged.digest not in (A.digest, B.digest)
        assert staged.client_update == B.digest
        staged.commit({})
        runs.assert_sound(store)
        for name, update in updates.items():
            assert store.load(name).applied == (update.digest,)
            runs.assert_same(store.load(name).state, apply_update(old[name][1], update))
        for update in (A, B):
            assert store.update(update.digest).digest == update.digest
        after = files(store)
        again = stage(store, dict(reversed(updates.items())), B)
        assert (again.digest, again.files) == (staged.digest, [])
        again.commit({})
        assert files(store) == after
        assert stage(store, {**updates, "g2": A}, B).digest != staged.digest


def test_models_without_a_checkpoint_are_passed_over(tmp_path: Path) -> None:
    with runs.filled(tmp_path, keep=KeepPolicy()) as store:
        staged = stage(store, dict.fromkeys(["r1-0", "g1", "nobody"], A), A)
        assert [f.node.name for f in staged.files] == ["g1"]
        staged.rollback()
        runs.assert_sound(store)
        with pytest.raises(UpdateError, match="no model to apply the update to"):
            stage(store, {}, A)
        stage(store, {"r1-0": A}, A).commit({}, ["0"])  # clients are told all the same
        assert list(store.operations.outstanding()) == ["0"]


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    threads = set()
    with runs.filled(tmp_path) as store:

        def progress(done: int, total: int) -> None:
            told.append((done, total))
            threads.add(threading.get_ident())

        stage(store, dict.fromkeys(sorted(store.kept()), A), A, progress=progress, workers=3)
    assert told == [(i, 7) for i in range(1, 8)]
    assert threads == {threading.get_ident()}


# --------------------------------------------------------------------------- nothing at all
@pytest.fixture
def store(tmp_path: Path) -> Any:
    with runs.filled(tmp_path, rounds=3) as opened:
        before = files(opened)
        yield opened
        assert files(opened) == before
        assert opened.operations.all() == []


def everywhere(store: RunStore, update: DampeningUpdate = A, **kwargs: Any) -> None:
    stage(store, dict.fromkeys(sorted(store.kept()), update), update, **kwargs)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("which", ["g0", "r2-0", "r3-1"])
def test_one_corrupt_checkpoint_changes_nothing(which: str, workers: int, store: RunStore) -> None:
    path = store.checkpoints.path(which)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptCheckpointError, match=which):
        everywhere(store, workers=workers)
    path.write_bytes(data)


@pytest.mark.parametrize("allowed", range(11))
@pytest.mark.parametrize("step", ["replace", "sync_folder"])
def test_a_disk_that_fails_on_the_way_changes_nothing(
    step: str, allowed: int, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file is in place when the failure comes: one write for the update, one a model."""
    place = store_module.os if step == "replace" else store_module
    real, left = getattr(place, step), iter(range(allowed))

    def fail(*args: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(place, step, fail)
        with pytest.raises(StoreFullError, match="no room left"):
            everywhere(store, workers=2)


def test_too_little_room_is_seen_before(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(p.stat().st_size for p in store.checkpoints.folder.iterdir())
    monkeypatch.setattr(apply.shutil, "disk_usage", lambda p: type("Usage", (), {"free": need - 1})())
    with pytest.raises(StoreFullError, match=f"needs {need:,} bytes .* {need - 1:,} are free"):
        everywhere(store)
    assert not list((store.folder / "updates").iterdir())
    monkeypatch.setattr(apply.shutil, "disk_usage", lambda p: type("Usage", (), {"free": need})())
    stage(store, dict.fromkeys(sorted(store.kept()), A), A).rollback()


def test_an_update_that_does_not_fit_changes_nothing(store: RunStore) -> None:
    ones = {"z.weight": torch.ones(5, 4)}
    spec = {"z.weight": TensorSpec((5, 4), "float32")}
    with pytest.raises(UpdateError, match=r"made for 'z.weight' as float32\[5, 4\]"):
        everywhere(store, build_update(ones, {"z.weight": ones["z.weight"] / 9}, threshold=1, signature=spec))


def test_an_error_in_the_callback_changes_nothing(store: RunStore) -> None:
    def progress(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        everywhere(store, progress=progress, workers=2)


@pytest.mark.parametrize("request_", [{"x": object()}, None])
def test_a_decision_that_cannot_be_recorded_changes_nothing(request_: Any, store: RunStore) -> None:
    staged = stage(store, dict.fromkeys(sorted(store.kept()), A), A)
    with pytest.raises((TypeError, AuditError)):
        staged.commit(request_)
    staged.rollback()


def test_the_ledger_being_locked_changes_nothing(store: RunStore) -> None:
    staged = stage(store, dict.fromkeys(sorted(store.kept()), A), A)
    store.umig.connection.execute("PRAGMA busy_timeout = 20")
    blocker = sqlite3.connect(store.folder / "lineage.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        staged.commit({})
    blocker.execute("ROLLBACK")
    blocker.close()
    staged.rollback()


def test_the_digests_travel_in_the_files(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        for update in (A, B):
            stage(store, {"g1": update}, update).commit({})
        data = store.checkpoints.path("g1").read_bytes()
    assert decode(data, "g1").applied == (A.digest, B.digest)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["fl_unlearn"]) == {"applied": [A.digest, B.digest]}
