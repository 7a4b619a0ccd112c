"""One update on one file: the same model however it is written; only what changes is touched."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn import apply_file
from fl_unlearn.apply import stage
from fl_unlearn.apply_file import Job, prepare
from fl_unlearn.dampen import DampeningUpdate, Entry, apply_update
from fl_unlearn.erase import Erasure
from fl_unlearn.operations import OperationLedger
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import CheckpointStore
from fl_unlearn.types import (
    CorruptCheckpointError,
    SettingsError,
    StoreError,
    TensorSpec,
    UpdateError,
    signature_of,
)
from fl_unlearn.update import ErasedLayer

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


@st.composite
def models(draw: Callable[..., Any]) -> tuple[dict[str, torch.Tensor], DampeningUpdate]:
    """A model of any shapes and dtypes, and an update of some elements of its floating tensors."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    state, entries = {}, {}
    for i in range(draw(st.integers(1, 5))):
        name, shape = f"t{i}.é", tuple(draw(st.lists(st.sampled_from([0, 1, 3, 40, 700]), max_size=2)))
        tensor = (10 * torch.randn(shape, generator=g)).to(draw(st.sampled_from(DTYPES)))
        state[name] = tensor
        if tensor.is_floating_point() and tensor.numel() and draw(st.booleans()):
            share = draw(st.sampled_from([0.001, 0.1, 1.0]))
            chosen = (torch.rand(tensor.numel(), generator=g) < share).nonzero().flatten()
            if len(chosen):
                spec = signature_of(state)[name]
                entries[name] = Entry(chosen.to(torch.int32), torch.rand(len(chosen), generator=g), spec)
    return state, DampeningUpdate(entries, 1.0)


def written(store: CheckpointStore, state: dict[str, torch.Tensor]) -> Job:
    return Job("m", 1, store.write("m", state, ("0" * 64,)))


@pytest.mark.parametrize("share", [0.0, 0.25, 10.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_update_that_erases(
    share: float, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight and the constant part change wholly, in the file as in memory; all else stays."""
    torch.manual_seed(0)
    shapes = {
        "body.weight": (700, 30),
        "conv.weight": (6, 4, 3, 3),
        "bn.running_mean": (6,),
        "out.bias": (3,),
    }
    state = {n: torch.randn(s).to(dtype) for n, s in shapes.items()}
    specs = signature_of(state)
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    made = Erasure(basis, basis.clone(), torch.randn(6, dtype=torch.float64), 0.5)
    where = ("conv.weight", "bn.running_mean", "running_mean")
    layer = ErasedLayer(made, *where, specs[where[0]], specs[where[1]])
    entry = Entry(torch.tensor([1, 7]), torch.tensor([0.5, 0.0]), specs["conv.weight"])
    update = DampeningUpdate({"conv.weight": entry}, 1.0, 1.0, {"conv": layer})
    monkeypatch.setattr(apply_file, "SHARE_IN_PLACE", share)
    store = CheckpointStore(tmp_path)
    prepared = prepare(store, written(store, state), update)
    assert prepared.in_place is (share == 10.0) or share == 0.25
    store.promote("m")
    got = store.read("m")
    assert got.info == prepared.after
    torch.testing.assert_close(got.state, apply_update(state, update), rtol=0, atol=0)
    assert {n for n in state if not torch.equal(state[n], got.state[n])} == set(where[:2])
    assert float(got.state["conv.weight"].flatten()[7]) == 0.0
    assert prepare(store, Job("m", 1, got.info), update).after is None


@given(case=models(), share=st.sampled_from([0.0, 0.25, 10.0]))
@settings(max_examples=120, deadline=None)
def test_equals_loading_multiplying_saving(
    case: tuple[dict[str, torch.Tensor], DampeningUpdate],
    share: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state, update = case
    expected = {n: t.clone() for n, t in state.items()}
    for name, entry in update.entries.items():
        flat = expected[name].flatten()
        for i, factor in zip(entry.indices.tolist(), entry.factors, strict=True):
            wide = torch.promote_types(flat.dtype, torch.float32)
            flat[i] = (flat[i].to(wide) * factor.to(wide)).to(flat.dtype)
        expected[name] = flat.reshape(expected[name].shape)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(apply_file, "SHARE_IN_PLACE", share)
        for store in (
            CheckpointStore(tmp_path_factory.mktemp("c")),
            CheckpointStore(f"memory://{uuid.uuid4().hex}"),
        ):
            prepared = prepare(store, written(store, state), update)
            assert prepared.in_place is (share == 10.0 and store.files.in_place) or share == 0.25
            store.promote("m")
            got = store.read("m")
            assert got.info == prepared.after
            assert got.info.segments == prepared.after.segments  # type: ignore[union-attr]
            assert got.applied == ("0" * 64, update.digest)
            for name, tensor in expected.items():
                torch.testing.assert_close(got.state[name], tensor, rtol=0, atol=0, equal_nan=True)
            assert store.staged_names() == set()
            assert prepare(store, Job("m", 1, got.info), update).after is None


def test_only_the_touched_bytes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    state = {"body": torch.randn(500_000), "head": torch.randn(10, 64)}
    job = written(store, state)
    entry = Entry(
        torch.arange(64, 128, dtype=torch.int32), torch.full((64,), 0.5), signature_of(state)["head"]
    )
    before, inode = store.path("m").read_bytes(), store.path("m").stat().st_ino
    moved = {"read": 0, "write": 0}
    for call in ("write", "pwrite"):
        real = getattr(os, call)
        monkeypatch.setattr(
            os, call, lambda fd, d, *a, r=real: (moved.update(write=moved["write"] + len(d)), r(fd, d, *a))[1]
        )
    prepared = prepare(store, job, DampeningUpdate({"head": entry}, 1.0))
    assert store.path("m").read_bytes() == before
    store.promote("m")
    after = store.path("m").read_bytes()
    assert moved["write"] < 2 * (64 * 4 + 2000)  # one row and the header, twice
    assert prepared.written < 64 * 4 + 2000
    assert (len(after), store.path("m").stat().st_ino) == (len(before), inode)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    header = 8 + int.from_bytes(before[:8], "little")
    head = state["head"].numpy().tobytes()
    row = before.index(head) + 64 * 4
    assert all(i < header or row <= i < row + 64 * 4 for i in changed)
    torch.testing.assert_close(safetensors.torch.load(after)["head"][1], state["head"][1] * 0.5)


def test_more_updates_than_there_is_room_for(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = runs.state(1)
    job, digests, kinds = written(store, state), ["0" * 64], []
    for number in range(40):
        update = runs.update(number)
        prepared = prepare(store, job, update)
        assert prepared.after is not None
        store.promote("m")
        state, job = apply_update(state, update), Job("m", 1, prepared.after)
        digests.append(update.digest)
        kinds.append(prepared.in_place)
    got = store.read("m", job.before.digest)
    assert got.applied == tuple(digests)
    assert kinds[:16] == [True] * 16
    assert 0 < kinds.count(False) < 5
    for name, tensor in state.items():
        torch.testing.assert_close(got.state[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("wide", [False, True], ids=["in place", "rewritten"])
@pytest.mark.parametrize("where", ["header", "z.weight", "body"])
def test_damage_in_what_is_read_is_found(where: str, wide: bool, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = runs.state(1)
    job, data = written(store, state), bytearray(store.path("m").read_bytes())
    at = 100 if where == "header" else data.index(state[where].numpy().tobytes())
    data[at] ^= 1
    store.path("m").write_bytes(data)
    if where == "body" and not wide:  # not read: left as it is, for a check of the whole file to find
        assert prepare(store, job, runs.update()).after is not None
        store.promote("m")
        with pytest.raises(CorruptCheckpointError):
            store.read("m", job.before.digest)
        return
    with pytest.raises(CorruptCheckpointError, match=r"m.safetensors.*the ledger says"):
        prepare(store, job, runs.update(wide=wide))
    assert store.path("m").read_bytes() == data
    assert store.staged_names() == set()


def test_a_damaged_list_of_changes_is_not_put_in_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    prepare(store, written(store, runs.state(1)), runs.update())
    redo = next(tmp_path.glob("*.redo"))
    redo.write_bytes(redo.read_bytes()[:-1])
    before = store.path("m").read_bytes()
    with pytest.raises(CorruptCheckpointError, match="redo was damaged"):
        store.promote("m")
    assert store.path("m").read_bytes() == before


def test_a_checkpoint_that_is_gone_before_its_update_is_in_place(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store, pytest.MonkeyPatch.context() as m:
        m.setattr(OperationLedger, "finish", lambda self: None)
        everywhere(store, wide=False)
    path = tmp_path / "checkpoints" / "g1.safetensors"
    path.rename(tmp_path / "backup")
    with pytest.raises(CorruptCheckpointError, match=r"g1.safetensors is missing, and an update of it is"):
        RunStore(tmp_path)
    (tmp_path / "backup").rename(path)
    with RunStore(tmp_path) as store:
        runs.assert_sound(store)
        assert store.load("g1").applied == (runs.update().digest,)


@pytest.mark.parametrize(
    ("name", "spec", "match"),
    [
        ("nothing", TensorSpec((3,), "float32"), "does not have"),
        ("a.bias", TensorSpec((4,), "float32"), r"float32\[4\], this model has float32\[3\]"),
        ("steps", TensorSpec((), "float32"), r"this model has int64\[\]"),
    ],
)
def test_updates_that_do_not_fit(name: str, spec: TensorSpec, match: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    job = written(store, runs.state(1))
    entry = Entry(torch.zeros(1, dtype=torch.int32), torch.zeros(1), spec)
    with pytest.raises(UpdateError, match=match):
        prepare(store, job, DampeningUpdate({name: entry}, 1.0))
    assert store.staged_names() == set()


# --------------------------------------------------------------------------- whole stores, elsewhere
def everywhere(store: RunStore, wide: bool, **kwargs: Any) -> None:
    update = runs.update(wide=wide)
    stage(store, dict.fromkeys(sorted(store.kept()), update), update, **kwargs).commit({})


@pytest.mark.parametrize("wide", [False, True], ids=["in place", "rewritten"])
def test_ray_gives_the_same_files(wide: bool, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for folder in ("threads", "ray"):
        with runs.filled(tmp_path / folder, rounds=4) as store:
            everywhere(store, wide, executor=folder, progress=lambda *a: told.append(a))
            runs.assert_sound(store)
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / f / "checkpoints").iterdir()} for f in ("threads", "ray")
    ]
    assert files[0] == files[1]
    assert told == [(i, 13) for i in range(1, 14)] * 2


def test_an_error_in_a_ray_task_changes_nothing(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=4) as store:
        path = store.checkpoints.path("g3")
        path.write_bytes(path.read_bytes()[:-1])
        before = {p.name: p.read_bytes() for p in store.checkpoints.folder.iterdir()}
        with pytest.raises(CorruptCheckpointError, match="g3"):
            everywhere(store, False, executor="ray")
        assert {p.name: p.read_bytes() for p in store.checkpoints.folder.iterdir()} == before
        assert store.operations.all() == []


def test_checkpoints_at_another_address(tmp_path: Path) -> None:
    address = f"memory://{uuid.uuid4().hex}/run"
    with RunStore(tmp_path, keep=runs.ALL, checkpoints=address) as store:
        store.record("g0", runs.state(100), kind="initial", round_=0)
        runs.write_round(store, 1)
        before = runs.contents(store)
        everywhere(store, False)
        with pytest.raises(SettingsError, match=r"other processes do not see memory://"):
            everywhere(store, False, executor="ray")
        with pytest.raises(SettingsError, match="executor must be one of threads, ray; got 'dask'"):
            everywhere(store, False, executor="dask")
    assert not (tmp_path / "checkpoints").exists()
    with RunStore(tmp_path) as store:  # remembered
        assert store.checkpoints.address == address
        for name, (applied, state) in runs.contents(store).items():
            assert applied == (runs.update().digest,)
            runs.assert_same(state, apply_update(before[name][1], runs.update()))
        store.checkpoints.write("never recorded", runs.state(1))
        runs.stage(store.checkpoints, "g1", runs.state(1))
    with RunStore(tmp_path, checkpoints=address) as store:
        assert store.checkpoints.names() == store.kept()
        assert store.checkpoints.staged_names() == set()
    with pytest.raises(StoreError, match=r"are at memory://.*, not at memory://other"):
        RunStore(tmp_path, checkpoints="memory://other")
    with pytest.raises(StoreError, match="not in a local folder"), RunStore(tmp_path) as store:
        store.checkpoints.path("g0")


def test_a_ledger_needs_a_local_disk() -> None:
    with pytest.raises(StoreError, match=r"RunStore\('some/folder', checkpoints='s3://bucket/run'\)"):
        RunStore("s3://bucket/run")


@pytest.mark.parametrize("wide", [False, True], ids=["in place", "rewritten"])
def test_nothing_of_the_old_values_remains(wide: bool, tmp_path: Path) -> None:
    update = runs.update(wide=wide)
    with runs.filled(tmp_path, rounds=2) as store:
        kept = {name: store.load(name).state for name in sorted(store.kept())}
        everywhere(store, wide)
    old = set()
    for state in kept.values():
        for name, entry in update.entries.items():
            data, item = state[name].numpy().tobytes(), state[name].element_size()
            for i in entry.indices.tolist():
                if item == 4:  # two bytes can be the same by chance
                    old.add(data[i * item : (i + 1) * item])
    left = b"\0".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    aligned = {bytes(left[i : i + 4]) for i in range(len(left) - 3)}
    found = [v for v in old if v in aligned]
    # Four bytes of a random value can turn up by chance among so many; all of a model's cannot.
    assert len(found) <= len(old) // 20
    assert len(old) > 10
