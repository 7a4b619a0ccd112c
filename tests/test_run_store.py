"""A run's folder: rounds are whole or absent, whatever interrupts them, and the ledger tells the truth."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import runs
import safetensors.torch
import torch

from fl_unlearn import files as files_module
from fl_unlearn import store_folder
from fl_unlearn.lineage import UMIG
from fl_unlearn.run_store import DATABASE, RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import (
    CorruptCheckpointError,
    LineageError,
    ModelMismatchError,
    StoreError,
    StoreFullError,
)


# --------------------------------------------------------------------------- rounds
def test_a_round_is_recorded_with_its_files(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        names = ["g0", "r1-0", "r1-1", "g1", "r2-0", "r2-1", "g2"]
        assert [n.name for n in store.umig] == names
        assert store.kept() == set(names)
        runs.assert_sound(store)
        assert store.umig.node("g2").digest == store.load("g2").info.digest
        runs.assert_same(store.load("r2-1").state, runs.state(21))
        assert store.latest()[0].name == "g2"


@pytest.mark.parametrize("caught_inside", [False, True])
def test_an_error_inside_a_round_leaves_neither_nodes_nor_files(caught_inside: bool, tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        before = list(store.umig), runs.contents(store).keys()

        def failing() -> None:
            with store.round():
                store.record("x", runs.state(5), kind="aggregate", round_=2)
                try:
                    with store.round():
                        store.record("y", runs.state(6), kind="aggregate", round_=2)
                        raise ZeroDivisionError
                except ZeroDivisionError:
                    if not caught_inside:
                        raise

        with pytest.raises(StoreError if caught_inside else ZeroDivisionError):
            failing()
        assert (list(store.umig), runs.contents(store).keys()) == before
        runs.assert_sound(store)
        runs.write_round(store, 2)  # the same names are free
        runs.assert_sound(store)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"name": "g1"}, "recorded already"),
        ({"parents": {"nobody": 1.0}}, "there is no node 'nobody'"),
        ({"parents": {"g1": -1.0}}, "weight"),
        ({"round_": 0, "parents": {"g1": 1.0}}, "older than its parent"),
        ({"metadata": {"x": object()}}, "JSON"),
        ({"name": "half a pair \ud800"}, "surrogate"),
        ({"name": ""}, "non-empty"),
    ],
)
def test_a_node_that_does_not_fit_leaves_no_file(kwargs: dict[str, Any], match: str, tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        before = runs.contents(store)
        with pytest.raises(LineageError, match=match):
            store.record(**{"name": "x", "state": runs.state(5), "kind": "k", "round_": 1, **kwargs})
        assert runs.contents(store).keys() == before.keys()
        runs.assert_sound(store)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        with pytest.raises(StoreError, match=r"cannot write .* name too long"):
            store.record("x" * 300, runs.state(5), kind="aggregate", round_=2)
        assert "x" * 300 not in store.umig
        runs.assert_sound(store)


def test_a_full_disk_leaves_neither_node_nor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        with monkeypatch.context() as m:
            full = OSError(28, "No space left on device")
            # The last thing that can fail: the file has its name by then.
            m.setattr(files_module, "sync_folder", lambda folder: (_ for _ in ()).throw(full))
            with pytest.raises(StoreFullError):
                runs.write_round(store, 2)
        assert len(store.umig) == 4
        runs.assert_sound(store)


def test_nodes_without_a_model_and_signature(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.record("a", None, kind="stage", round_=0)
        assert store.signature() is None
        assert store.kept() == set()
        with pytest.raises(StoreError, match="no checkpoint was kept for 'a'; see the keep policy"):
            store.load("a")
        with pytest.raises(LineageError, match="there is no node 'b'"):
            store.load("b")
        with pytest.raises(StoreError, match="holds no global model"):
            store.latest()


def test_another_model_is_refused(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        wide = {n: t.double() if t.is_floating_point() else t for n, t in runs.state(9).items()}
        store.record("wide", wide, kind="aggregate", round_=2)  # strategies widen dtypes: the same model
        assert store.load("wide").state["half"].dtype == torch.float64
        other = {**runs.state(9), "a.bias": torch.ones(4)}
        del other["half"]
        match = r"missing 'half'; 'a.bias' is \[4\] where \[3\] was expected. Use a store of its own"
        with pytest.raises(ModelMismatchError, match=match):
            store.record("x", other, kind="aggregate", round_=2)
        assert "x" not in store.umig
        runs.assert_sound(store)


def test_tensors_come_back_in_the_models_order(tmp_path: Path) -> None:
    runs.filled(tmp_path, rounds=1).close()
    with RunStore(tmp_path) as store:
        assert list(store.load("g1").state) == ["z.weight", "a.bias", "steps", "half", "body"]
        assert list(store.checkpoints.read("g1").state) != ["z.weight", "a.bias", "steps", "half", "body"]


def test_who_is_who(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        assert store.clients() == {"0": "0", "1": "1"}
        store.identify("0", "hospital")
        store.identify("0", "clinic")
        store.identify("elsewhere", "x")
    with RunStore(tmp_path) as store:
        assert store.clients() == {"0": "clinic", "1": "1"}


# --------------------------------------------------------------------------- what is kept
def test_every_nth_round_and_the_initial_model(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=7, keep=KeepPolicy(every=3)) as store:
        assert store.kept() == {"g0", "g3", "g6"} == store.checkpoints.names()
        assert len(store.umig) == 22
        assert store.latest()[0].name == "g6"
    with runs.filled(tmp_path / "b", rounds=3, keep=KeepPolicy(aggregates=False, client_updates=True)) as b:
        assert b.kept() == {"g0", *(f"r{n}-{c}" for n in (1, 2, 3) for c in (0, 1))}


def test_the_byte_budget_drops_the_oldest_but_the_initial_and_newest(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=3) as store:
        order = [n.name for n in store.umig]
        sizes = {n: store.info(n).size for n in order}  # type: ignore[union-attr]
        for dropped in range(len(order) - 2):
            left = ["g0", *order[1 + dropped :]]
            store.keep = KeepPolicy(client_updates=True, byte_budget=sum(sizes[n] for n in left))
            assert store.prune() == ([] if dropped == 0 else [order[dropped]])
            assert store.kept() == set(left)
            runs.assert_sound(store)
        store.keep = KeepPolicy(byte_budget=1)
        assert store.prune() == ["r3-1"]
        assert store.kept() == {"g0", "g3"}
        assert len(store.umig) == 10
        store.keep = KeepPolicy()
        assert store.prune() == []


# --------------------------------------------------------------------------- opening
def test_read_only_while_another_handle_writes(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as writer, RunStore(tmp_path, read_only=True) as reader:
        before = runs.contents(reader)
        with writer.round():
            writer.record("new", runs.state(7), kind="aggregate", round_=2)
            assert (writer.checkpoints.path("new")).exists()
            assert runs.contents(reader).keys() == before.keys()
            with RunStore(tmp_path, read_only=True) as late:  # it does not take the file for a leftover
                assert late.kept() == before.keys()
        assert reader.kept() == {*before, "new"} == writer.kept()
        runs.assert_same(reader.load("new").state, runs.state(7))
        files = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
        with pytest.raises(LineageError, match="opened read-only"):
            reader.record("x", runs.state(8), kind="aggregate", round_=3)
        with pytest.raises(LineageError, match="opened read-only"):
            reader.identify("0", "clinic")
        assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == files


def test_read_only_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=r"has no lineage.sqlite: it is not the store of a run"):
            RunStore(folder, read_only=True)
    assert list(tmp_path.iterdir()) == []
    UMIG(tmp_path / DATABASE).close()
    with pytest.raises(StoreError, match="holds a lineage, but no run was stored there"):
        RunStore(tmp_path, read_only=True)


def test_folders_that_cannot_be_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    for path in (file, file / "below"):
        with pytest.raises(StoreError, match="cannot make the store"):
            RunStore(path)
    assert file.read_text() == "not a folder"
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / DATABASE).write_text("this is no SQLite file, however long one looks at it")
    with pytest.raises(StoreError, match="cannot be used"):
        RunStore(tmp_path / "garbage")
    (tmp_path / "other").mkdir()
    connection = sqlite3.connect(tmp_path / "other" / DATABASE)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        RunStore(tmp_path / "other")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "checkpoints").write_text("")
    with pytest.raises(StoreError, match="checkpoints"):
        RunStore(tmp_path / "taken")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        RunStore(tmp_path / "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        RunStore(tmp_path / "new")


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "another"])
def test_updates_are_kept_and_checked(damage: str, tmp_path: Path) -> None:
    update = runs.update()
    with RunStore(tmp_path) as store:
        path = store.save_update(update)
        assert store.update(update.digest).to_bytes() == update.to_bytes() == path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "another":
            path.write_bytes(runs.update(1).to_bytes())
        else:
            path.write_bytes(b"garbage" if damage == "garbage" else path.read_bytes()[:-3])
        with pytest.raises(CorruptCheckpointError, match="is missing" if damage == "missing" else "changed"):
            store.update(update.digest)


@pytest.mark.parametrize("damage", ["missing", "truncated", "older"])
def test_damaged_checkpoints_are_told_by_their_digest(damage: str, tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        path = store.checkpoints.path("g1")
        if damage == "missing":
            path.unlink()
        else:
            whole = store.checkpoints.path("g0").read_bytes()
            path.write_bytes(path.read_bytes()[:-1] if damage == "truncated" else whole)
    with RunStore(tmp_path) as store:
        with pytest.raises(CorruptCheckpointError, match=r"g1.safetensors .*(missing|the ledger says)"):
            store.load("g1")
        runs.assert_same(store.load("g2").state, runs.state(102))


def test_files_of_others_stay(tmp_path: Path) -> None:
    runs.filled(tmp_path).close()
    strange = {
        "notes.safetensors": b"not even one",
        "other.safetensors": safetensors.torch.save({"w": torch.ones(2)}, metadata={"format": "pt"}),
        "README": b"mine",
    }
    for name, data in strange.items():
        (tmp_path / "checkpoints" / name).write_bytes(data)
    with RunStore(tmp_path) as store:
        store.checkpoints.write("crashed", runs.state(1))
    with RunStore(tmp_path) as store:
        assert "crashed" not in store.checkpoints.names()
        for name, data in strange.items():
            assert (store.checkpoints.folder / name).read_bytes() == data


def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    runs.filled(tmp_path / "a").close()
    before = {p: p.read_bytes() for p in (tmp_path / "a" / "checkpoints").iterdir()}
    with pytest.raises(StoreError, match="holds files already"):
        RunStore(tmp_path / "b", checkpoints=str(tmp_path / "a" / "checkpoints"))
    with pytest.raises(StoreError, match="holds files already"):
        RunStore(tmp_path / "b", checkpoints=f"file://{tmp_path}/a/checkpoints")
    assert {p: p.read_bytes() for p in (tmp_path / "a" / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("given", ["file://{}/models", "models", "{}/store/checkpoints"])
def test_the_address_may_be_given_again(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = given.format(tmp_path)
    with RunStore("store", checkpoints=address) as store:
        where = store.checkpoints.address
        store.record("g0", runs.state(0), kind="initial", round_=0)
    for again in (address, where, None):
        with RunStore("store", checkpoints=again) as store:
            assert store.checkpoints.address == where
            runs.assert_sound(store)
    with pytest.raises(StoreError, match="not at elsewhere"):
        RunStore("store", checkpoints="elsewhere")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunStore(tmp_path), pytest.raises(StoreError, match="is being written by another run"):
        RunStore(tmp_path)
    with RunStore(tmp_path) as again, RunStore(tmp_path, read_only=True) as reader:
        assert again.kept() == reader.kept() == set()


def test_an_opening_that_failed_lets_go_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the error is being handled."""

    def full(*_: Any, **__: Any) -> None:
        raise StoreFullError("no room")

    with monkeypatch.context() as m:
        m.setattr(store_folder, "UMIG", full)
        with pytest.raises(StoreFullError) as caught:
            RunStore(tmp_path / "run")
    assert caught.value.__traceback__ is not None
    RunStore(tmp_path / "run").close()
