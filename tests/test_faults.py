"""Random kills, power cuts and full disks: a short ``make faults``; and that it finds planted bugs."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_unlearn import apply_file, files
from fl_unlearn import store_folder as folder_module
from fl_unlearn.files import LocalFiles
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import CheckpointStore
from simulations.faults.check import KINDS
from simulations.faults.counts import Counts
from simulations.faults.disk import Disk
from simulations.faults.harness import Harness
from simulations.faults.tape import Tape
from simulations.faults.victim import HARMLESS, Trigger, fork, store_folder
from simulations.faults.watch import Watch
from simulations.faults.work import KEEP_ALL, Apply, Expected, Open, Round, plan


def test_killed_at_random_instants(tmp_path: Path) -> None:
    counts = Harness(tmp_path, seed=1).run(25)
    assert counts.killed >= 25
    assert counts.good, counts.table()
    assert len({phase for phase, _ in counts.kills}) >= 4
    assert {kind for _, kind in counts.kills} == {"SIGKILL", "power cut"}
    assert counts.done["checkpoints compared"] > 100
    assert set(counts.plain()["failures"]) == set(KINDS)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- planted bugs
def no_sync(m: pytest.MonkeyPatch) -> None:
    m.setattr(LocalFiles, "sync", lambda self: None)


def no_folder_sync(m: pytest.MonkeyPatch) -> None:
    m.setattr(folder_module, "make_folder", lambda folder: folder.mkdir(parents=True, exist_ok=True))


def no_file_sync(m: pytest.MonkeyPatch) -> None:
    class Os:
        """As `os`; only folders are synced."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fdatasync(self, fd: int) -> None:
            pass

        def fsync(self, fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.fsync(fd)

    m.setattr(files, "os", Os())


def forgets_to_finish(m: pytest.MonkeyPatch) -> None:
    m.setattr(RunStore, "recover", lambda self: None)


def dampens_twice(m: pytest.MonkeyPatch) -> None:
    real = apply_file.change_flat
    m.setattr(apply_file, "change_flat", lambda flat, change: (real(flat, change), real(flat, change)))


def forgets_a_file(m: pytest.MonkeyPatch) -> None:
    real = CheckpointStore.promote
    m.setattr(CheckpointStore, "promote", lambda self, name: None if name == "g1" else real(self, name))


PLANTED = {
    no_sync: "lost",
    no_folder_sync: "lost",
    no_file_sync: "corrupted",
    forgets_to_finish: "stuck",
    dampens_twice: "dampened twice",
    forgets_a_file: "corrupted",
}


@pytest.mark.parametrize(("plant", "kind"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
def test_planted_bugs_are_found(
    plant: Callable[[pytest.MonkeyPatch], None], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(counts: Counts) -> None:
        if counts.failures[kind]:
            raise StopIteration

    plant(monkeypatch)
    with pytest.raises(StopIteration):
        Harness(tmp_path, 0, look).run(60)


# ---------------------------------------------------------------------------- the modelled disk
@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk")


def recorded(disk: Disk, work: Callable[[Path], Any]) -> None:
    tape = Tape()
    with Watch(tape, str(disk.root)):
        work(disk.root)
    disk.replay(tape.records())


def test_a_victim_that_nothing_happens_to(disk: Disk) -> None:
    """The model of the disk has what is on it, and all of it outlasts a power cut."""
    actions, tape = plan(Expected(), random.Random(3), 8), Tape()
    _, status = os.waitpid(fork(tape, disk.root, actions, None), 0)
    assert status == HARMLESS, tape.records()[-1]
    disk.replay(tape.records())
    assert disk.observe() == 0
    before = disk.contents()
    assert len(before) > 8
    disk.cut_power(random.Random(0), "nothing")
    assert disk.contents() == before
    assert disk.observe() == 0
    with RunStore(store_folder(disk.root), keep=KEEP_ALL) as store:
        assert {"g0", "g1"} <= {node.name for node in store.umig}


def test_what_a_killed_process_could_not_record_is_taken_in(disk: Disk) -> None:
    recorded(disk, lambda root: LocalFiles(root).write("file", [b"o" * 2048]) or LocalFiles(root).sync())
    (disk.root / "file").write_bytes(b"n" * 2048)
    (disk.root / "new").write_bytes(b"new")
    assert disk.observe() == 2
    assert disk.observe() == 0
    assert disk.contents() == {"file": b"n" * 2048, "new": b"new"}
    disk.cut_power(random.Random(1), "any")
    assert len(disk.contents()["file"]) == 2048, "it was never shorter"


def test_what_was_not_synced_may_be_gone(disk: Disk) -> None:
    local = LocalFiles(disk.root)
    old, new = b"o" * 3000, b"n" * 3000

    def work(_: Path) -> None:
        local.write("kept", [old])
        local.write("renamed", [old])
        local.sync()
        local.write("unnamed", [new])
        local.replace("renamed", "other")
        fd = os.open(disk.root / "kept", os.O_WRONLY)
        os.pwrite(fd, new, 0)
        os.close(fd)

    seen = set()
    for seed, mode in enumerate(["nothing", *["any", "prefix"] * 30]):
        recorded(disk, work)
        disk.cut_power(random.Random(seed), mode)
        found = disk.contents()
        assert ("renamed" in found) != ("other" in found), "a replacement happens, or does not"
        assert len(found["kept"]) == 3000
        assert set(found["kept"]) <= set(old + new)
        if mode == "nothing":
            assert found == {"kept": old, "renamed": old}
        seen |= {("unnamed", "unnamed" in found), ("other", "other" in found)}
        seen.add(("torn", len({found["kept"][at : at + 512] for at in range(0, 2560, 512)}) > 1))
        for name in found:
            recorded(disk, lambda root, name=name: os.unlink(root / name))  # type: ignore[misc]
    assert seen == {(what, is_) for what in ("unnamed", "other", "torn") for is_ in (False, True)}


@pytest.mark.parametrize(("kind", "suffix"), {"in place": "redo", "rewritten": "staged"}.items())
def test_updates_are_made_in_place_and_by_rewriting(kind: str, suffix: str, disk: Disk) -> None:
    tape = Tape()
    actions = [Open(), Round(0), Round(1), Apply(0, kind, ("g1",), ())]
    assert os.waitpid(fork(tape, disk.root, actions, None), 0)[1] == HARMLESS
    ends = {r[2].rsplit(".", 1)[1] for r in tape.records() if r[0] == "open"}
    assert ends & {"redo", "staged"} == {suffix}


def test_a_full_disk_is_refused_and_then_the_work_goes_on(disk: Disk) -> None:
    tape = Tape()
    trigger = Trigger("appending", 3, clock=False, amount=4, full="files")
    actions = [Open(), Round(0), Round(1), Round(2)]
    assert os.waitpid(fork(tape, disk.root, actions, trigger), 0)[1] == HARMLESS
    (failed,) = (r for r in tape.records() if r[0] == "failed")
    assert failed == ("failed", 3, "StoreFullError", "appending")
    with RunStore(store_folder(disk.root)) as store:
        assert "g2" in store.kept()
