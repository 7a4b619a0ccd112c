"""Killed at any step, a run's folder is wholly as before or wholly as after when it is opened again."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from crashes import killed_at

from fl_unlearn import apply
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.files import LocalFiles
from fl_unlearn.operations import OperationLedger
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy

NARROW, WIDE = runs.update(), runs.update(wide=True)
Arm = Callable[[], None]


def kill_everywhere(template: Path, work: Callable[[Path, Arm], None], check: Callable[[Path], bool]) -> int:
    """Kill ``work`` at each of its steps; ``check`` says of the reopened folder whether all was done."""
    outcomes = []
    for at in itertools.count():
        folder = template.parent / f"killed-{at}"
        shutil.copytree(template, folder)
        killed = killed_at(at, lambda arm, folder=folder: work(folder, arm))  # type: ignore[misc]
        outcomes.append(check(folder))
        shutil.rmtree(folder)
        if not killed:
            break
    assert outcomes[-1]
    assert sorted(outcomes) == outcomes, "done, and then undone"
    assert at > 5, "nothing was interrupted"
    return outcomes.count(False)


def test_killed_while_a_round_is_written(tmp_path: Path) -> None:
    runs.filled(tmp_path / "template", rounds=1).close()
    before = {"g0", "r1-0", "r1-1", "g1"}

    def work(folder: Path, arm: Arm) -> None:
        with RunStore(folder, keep=runs.ALL) as store:
            arm()
            runs.write_round(store, 2)

    def check(folder: Path) -> bool:
        with RunStore(folder, keep=runs.ALL) as store:
            runs.assert_sound(store)
            names = {n.name for n in store.umig}
            assert names == store.kept()
            assert names in (before, before | {"r2-0", "r2-1", "g2"})
            if names == before:
                runs.write_round(store, 2)
                runs.assert_sound(store)
            runs.assert_same(store.load("g2").state, runs.state(102))
            return names != before

    assert kill_everywhere(tmp_path / "template", work, check) > 20


@pytest.fixture(params=[NARROW, WIDE], ids=["in place", "rewritten"])
def update(request: pytest.FixtureRequest) -> DampeningUpdate:
    chosen: DampeningUpdate = request.param
    return chosen


@pytest.fixture
def before_and_after(tmp_path: Path, update: DampeningUpdate) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is kept in ``template``, and what is to be after `update` was applied to all but the initial."""
    with runs.filled(tmp_path / "template", rounds=1) as store:
        before = runs.contents(store)
    after = {n: ((update.digest,), apply_update(s, update)) for n, (_, s) in before.items()}
    return before, {**after, "g0": before["g0"]}


def assert_contents(store: RunStore, expected: dict[str, Any]) -> None:
    got = runs.contents(store)
    assert {n: a for n, (a, _) in got.items()} == {n: a for n, (a, _) in expected.items()}
    for name, (_, state) in expected.items():
        runs.assert_same(got[name][1], state)


def apply_everywhere(store: RunStore, update: DampeningUpdate) -> None:
    updates = dict.fromkeys(sorted(store.kept() - {"g0"}), update)
    apply.stage(store, updates, update, workers=1).commit({"classes": [3]}, ["0", "1"])


def test_killed_while_an_update_is_applied(
    before_and_after: Any, update: DampeningUpdate, tmp_path: Path
) -> None:
    before, after = before_and_after

    def work(folder: Path, arm: Arm) -> None:
        with RunStore(folder) as store:
            arm()
            apply_everywhere(store, update)

    def check(folder: Path) -> bool:
        with RunStore(folder) as store:
            runs.assert_sound(store)
            done = bool(store.operations.all())
            assert_contents(store, after if done else before)
            assert set(store.operations.outstanding()) == ({"0", "1"} if done else set())
            apply_everywhere(store, update)
            runs.assert_sound(store)
            assert_contents(store, after)
            assert [o.digest for o in store.operations.all()] == [update.digest]
            assert store.update(update.digest).digest == update.digest
            return done

    assert kill_everywhere(tmp_path / "template", work, check) > 20


def test_killed_while_recovering(
    before_and_after: Any, update: DampeningUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template"
    with RunStore(template) as store, monkeypatch.context() as m:
        m.setattr(OperationLedger, "finish", lambda self: None)
        apply_everywhere(store, update)
        assert store.operations.pending() == store.kept() - {"g0"} == store.checkpoints.staged_names()
        store.checkpoints.promote("r1-1")  # as if it had come so far
        runs.stage(store.checkpoints, "g0", runs.state(1))  # never decided
        store.checkpoints.write("never recorded", runs.state(1))
        (template / "checkpoints" / "x.safetensors.staged.partial").write_bytes(b"half")

    def work(folder: Path, arm: Arm) -> None:
        arm()
        RunStore(folder).close()

    def check(folder: Path) -> bool:
        with RunStore(folder) as store:
            runs.assert_sound(store)
            assert_contents(store, before_and_after[1])
            return True

    assert kill_everywhere(template, work, check) == 0


def test_killed_while_pruning(tmp_path: Path) -> None:
    runs.filled(tmp_path / "template").close()

    def work(folder: Path, arm: Arm) -> None:
        with RunStore(folder, keep=KeepPolicy(byte_budget=1)) as store:
            arm()
            store.prune()

    def check(folder: Path) -> bool:
        with RunStore(folder) as store:
            runs.assert_sound(store)
            assert store.kept() in ({"g0", "g2"}, {n.name for n in store.umig})
            return store.kept() == {"g0", "g2"}

    assert kill_everywhere(tmp_path / "template", work, check) > 3


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_disk_that_fails_after_the_decision(
    done: int,
    reopen: bool,
    before_and_after: Any,
    update: DampeningUpdate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decided is decided: what could not be put in place is not taken away, and is put in place later."""
    store = RunStore(tmp_path / "template")
    names = sorted(store.kept() - {"g0"})
    staged = apply.stage(store, dict.fromkeys(names, update), update)
    step = "replace" if update is WIDE else "fdatasync"
    real, calls = getattr(os, step), itertools.count()

    def failing(*args: Any) -> None:
        if next(calls) >= done:
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    with monkeypatch.context() as m:
        m.setattr(os, step, failing)
        staged.commit({}, ["0"])
        staged.rollback()
    assert store.operations.pending() == set(names)
    assert len(store.checkpoints.staged_names()) == len(names) - done
    if reopen:
        store.close()
        store = RunStore(tmp_path / "template")
    else:
        apply_everywhere(store, update)
    with store:
        runs.assert_sound(store)
        assert_contents(store, before_and_after[1])


def test_files_are_on_the_disk_before_the_ledger_says_so(
    before_and_after: Any, update: DampeningUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunStore(tmp_path / "template") as store:
        events: list[str] = []
        for call in ("write", "pwrite", "replace", "fsync", "fdatasync"):
            real = getattr(os, call)
            monkeypatch.setattr(os, call, lambda *a, c=call, r=real: (events.append(c), r(*a))[1])
        store.umig.connection.set_trace_callback(lambda sql: events.append(sql))
        apply_everywhere(store, update)

    def last(*calls: str, before: str) -> int:
        told = next(i for i, e in enumerate(events) if e.startswith(before))
        return max(i for i, e in enumerate(events[:told]) if e in calls)

    for before in ("INSERT INTO operation", "UPDATE checkpoint"):
        assert last("fsync", "fdatasync", before=before) > last("write", "pwrite", "replace", before=before)
    assert ("pwrite" in events) is (update is NARROW)


def test_every_round_is_on_the_disk_before_the_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names too, and not only of the first round that a process records."""
    with RunStore(tmp_path / "run", keep=runs.ALL) as store:
        events: list[str] = []
        write, sync = LocalFiles.write, LocalFiles.sync
        monkeypatch.setattr(LocalFiles, "write", lambda f, n, c: (events.append("write"), write(f, n, c)))
        monkeypatch.setattr(LocalFiles, "sync", lambda f: (events.append("sync"), sync(f)))
        store.umig.connection.set_trace_callback(lambda sql: events.append(sql) if sql == "COMMIT" else None)
        store.record("g0", runs.state(100), kind="initial", round_=0)
        runs.write_round(store, 1)
        runs.write_round(store, 2)
    assert events == ["write", "sync", "COMMIT"] + 2 * ["write", "write", "write", "sync", "COMMIT"]


class Interrupted:
    """A connection whose user presses Ctrl-C while it commits: Python raises that afterwards."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        result = self.connection.execute(statement, *values)
        if statement == "COMMIT":
            raise KeyboardInterrupt
        return result


def test_an_interruption_while_a_round_is_committed_leaves_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        with monkeypatch.context() as patched:
            patched.setattr(store.umig, "_open", Interrupted(store.umig.connection))
            with pytest.raises(KeyboardInterrupt):
                runs.write_round(store, 2)
        assert {"r2-0", "r2-1", "g2"} <= store.kept()
        runs.assert_sound(store)
