"""A client's copies on its disk: each gets each update once, whatever comes in between."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import copies_cases as cases
import pytest
from crashes import killed_at
from torch.testing import assert_close

from fl_unlearn.copies import CopyRegistry
from fl_unlearn.copy_file import CopyError
from fl_unlearn.dampen import apply_update
from fl_unlearn.types import StoreError
from fl_unlearn.update import DampeningUpdate

ONE, TWO = cases.update(1), cases.update(2, erases=True)


def registry(folder: Path) -> CopyRegistry:
    """As a process that has just been started has it."""
    return CopyRegistry(folder / "own")


def save(path: Path, state: cases.State) -> Path:
    path.write_bytes(cases.FORMATS["torch" if path.suffix == ".pt" else "safetensors"](state))
    return path


def expect(path: Path, *updates: DampeningUpdate, state: cases.State | None = None) -> None:
    expected = dict(state or cases.model())
    for update in updates:
        expected = apply_update(expected, update)
    assert_close(cases.read(path.read_bytes()), expected, rtol=0, atol=0)


def statuses(receipts: list[dict[str, str]]) -> dict[str, str]:
    return {r["copy"]: r["status"] for r in receipts}


def apply(folder: Path, update: DampeningUpdate) -> list[dict[str, str]]:
    return registry(folder).apply(update, cases.SIGNATURE)


# --------------------------------------------------------------------------- once
def test_updates_are_applied_once_and_told_with_digests(tmp_path: Path) -> None:
    torch_file = save(tmp_path / "last.pt", cases.model())
    other = save(tmp_path / "best.safetensors", cases.model(1))
    os.chmod(torch_file, 0o600)
    before = {p: sha256(p.read_bytes()).hexdigest() for p in (torch_file, other)}
    for path in before:
        registry(tmp_path).add(path, [])
    first = apply(tmp_path, ONE)
    for path, digest in before.items():
        (receipt,) = (r for r in first if r["copy"] == path.name)
        assert receipt == {
            "copy": path.name,
            "before": digest,
            "after": sha256(path.read_bytes()).hexdigest(),
            "status": "applied",
        }
    expect(torch_file, ONE)
    expect(other, ONE, state=cases.model(1))
    assert stat.S_IMODE(torch_file.stat().st_mode) == 0o600
    assert apply(tmp_path, ONE) == first, "the answer was lost, so it is given again"
    second = apply(tmp_path, TWO)
    assert [r["before"] for r in second] == [r["after"] for r in first]
    expect(torch_file, ONE, TWO)
    assert apply(tmp_path, TWO) == second
    expect(torch_file, ONE, TWO)
    expect(other, ONE, TWO, state=cases.model(1))


def test_what_a_saved_model_had_is_not_repeated_and_what_it_lacked_is_made_up_for(tmp_path: Path) -> None:
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [])
    apply(tmp_path, ONE)
    forgotten, old = cases.model(5), cases.model(6)
    registry(tmp_path).add(save(path, forgotten), [ONE.digest])
    expect(path, state=forgotten)
    registry(tmp_path).add(save(path, old), [])  # trained from a model of before the request
    expect(path, ONE, state=old)
    again = save(tmp_path / "late.safetensors", cases.model(7))
    registry(tmp_path).add(again, [])
    expect(again, ONE, state=cases.model(7))
    receipts = apply(tmp_path, TWO)
    late = [r for r in receipts if r.get("update") == ONE.digest]
    assert sorted(r["copy"] for r in late) == ["last.pt", "late.safetensors"], "told at the next contact"
    assert apply(tmp_path, TWO) == receipts
    expect(again, ONE, TWO, state=cases.model(7))


def test_a_model_that_came_with_the_update_before_the_update_did(tmp_path: Path) -> None:
    """The question was lost, the training message was not."""
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [ONE.digest])
    assert statuses(apply(tmp_path, ONE)) == {
        "last.pt": "nothing to do: it was saved from a model that had the update"
    }
    expect(path)


def test_personal_layers_have_had_what_their_file_had(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    head = {n: t for n, t in cases.model().items() if n.startswith("head")}
    registry(tmp_path).add(save(path, head), [], personal=True)
    registry(tmp_path).add(save(path, head), [ONE.digest], personal=True)  # it has not been told yet
    assert statuses(apply(tmp_path, ONE)) == {"head.pt": "applied"}
    expect(path, ONE, state=head)
    registry(tmp_path).add(path, [ONE.digest], personal=True)
    assert "not in it: 'bn.running_mean', 'conv.weight'" in statuses(apply(tmp_path, TWO))["head.pt"]
    (tmp_path / "body.pt").write_bytes(cases.as_torch({"conv.weight": cases.model()["conv.weight"]}))
    registry(tmp_path).add(tmp_path / "body.pt", [TWO.digest])
    assert statuses(apply(tmp_path, cases.update(3)))["body.pt"] == (
        "skipped: it holds none of the tensors that the update changes"
    )


# --------------------------------------------------------------------------- what cannot be dampened
def test_one_bad_copy_hinders_no_other_and_is_tried_again(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pt", cases.model())
    bad = {n: save(tmp_path / n, cases.model()) for n in ("gone.pt", "torn.pt", "foreign.pt", "link.pt")}
    for path in (*bad.values(), good):
        registry(tmp_path).add(path, [])
    bad["gone.pt"].unlink()
    bad["torn.pt"].write_bytes(bad["torn.pt"].read_bytes()[:-40])
    save(bad["foreign.pt"], {"head.weight": cases.model()["head.weight"][:3]})
    bad["link.pt"].unlink()
    bad["link.pt"].symlink_to(good)
    content = {p: p.read_bytes() for p in bad.values() if p.exists() and not p.is_symlink()}
    told = statuses(apply(tmp_path, ONE))
    assert told.pop("good.pt") == "applied"
    assert told == {
        "gone.pt": "failed: there is no such file",
        "torn.pt": "failed: torch.load with weights_only=True cannot read it (RuntimeError)",
        "foreign.pt": "failed: it is no copy of this model: 'head.weight' is [3, 6] in it, [5, 6] in the "
        "model",
        "link.pt": "failed: cannot be read: Too many levels of symbolic links",
    }
    assert all(p.read_bytes() == data for p, data in content.items())
    assert bad["link.pt"].is_symlink()
    save(bad["torn.pt"], cases.model())
    registry(tmp_path).remove(bad["gone.pt"])
    registry(tmp_path).remove(bad["link.pt"])
    told = statuses(apply(tmp_path, ONE))
    assert told["torn.pt"] == "applied"
    assert told["gone.pt"] == told["link.pt"] == "skipped: the client no longer keeps it"
    assert set(statuses(apply(tmp_path, TWO))) == {"good.pt", "torn.pt", "foreign.pt"}
    expect(good, ONE, TWO)
    expect(bad["torn.pt"], ONE, TWO)


def test_a_copy_that_is_no_longer_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [])
    registry(tmp_path).remove(path)
    registry(tmp_path).remove(path)
    assert apply(tmp_path, ONE) == []
    expect(path)
    registry(tmp_path).add(path, [])
    expect(path, ONE)


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "last.pt", cases.model())
    (tmp_path / "d").mkdir()
    other = save(tmp_path / "d" / "b.pt", cases.model())
    registry(tmp_path).add(path, [])
    registry(tmp_path).add(other, [])
    apply(tmp_path, ONE)
    write = os.write

    def full(fd: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    told = statuses(apply(tmp_path, TWO))
    assert "failed: no room left while writing last.pt" in told["last.pt"]
    assert told["b.pt"].startswith("applied")
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", "d", "own"}, "nothing is left behind"
    expect(path, ONE)
    monkeypatch.undo()
    apply(tmp_path, TWO)
    expect(path, ONE, TWO)
    expect(other, ONE, TWO)


# --------------------------------------------------------------------------- what is asked
def test_what_cannot_be_registered(tmp_path: Path) -> None:
    with pytest.raises(CopyError, match=r"there is no file .*/none.pt to keep"):
        registry(tmp_path).add(tmp_path / "none.pt", [])
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CopyError, match="neither a safetensors file nor"):
        registry(tmp_path).add(tmp_path / "text.pt", [])
    assert apply(tmp_path, ONE) == []


def test_names_tell_no_path_and_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        path = save(tmp_path / folder / "m.pt", cases.model())
        registry(tmp_path).add(path, [], name="x\n" + "y" * 100 if folder == "c" else None)
        registry(tmp_path).add(path, [])
    receipts = apply(tmp_path, ONE)
    assert [*statuses(receipts)] == ["m.pt", "m.pt (2)", "x?" + "y" * 58]
    assert str(tmp_path) not in json.dumps(receipts)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "fl-unlearn copies 2", "copies": []}'])
def test_a_damaged_book_is_named(content: str, tmp_path: Path) -> None:
    apply(tmp_path, ONE)
    (tmp_path / "own" / "copies.json").write_text(content)
    with pytest.raises(StoreError, match=r"copies.json is damaged .* restore it from a backup"):
        apply(tmp_path, TWO)


def test_an_update_that_was_kept_and_is_damaged(tmp_path: Path) -> None:
    apply(tmp_path, ONE)
    (kept,) = (tmp_path / "own" / "updates").iterdir()
    kept.write_bytes(TWO.to_bytes())
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [])
    expect(path)
    told = {r.get("update"): r["status"] for r in apply(tmp_path, TWO)}
    assert told[ONE.digest].startswith("failed: the update that it lacks cannot be read")
    assert told[None] == "applied"


# --------------------------------------------------------------------------- killed at every step
def crashing(
    setup: Callable[[Path], None], work: Callable[[Path], None], check: Callable[[Path], None], tmp_path: Path
) -> int:
    """Kill ``work`` at every step it takes on the disk; after each, ``check`` in a process started anew."""
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        setup(folder)

        def counted(go: Callable[[], None], folder: Path = folder) -> None:
            go()
            work(folder)

        died = killed_at(at, counted)
        check(folder)
        if not died:
            return at
        at += 1


def test_killed_at_every_step_of_an_update(tmp_path: Path) -> None:
    names = ["a.pt", "b.safetensors"]

    def setup(folder: Path) -> None:
        for name in names:
            registry(folder).add(save(folder / name, cases.model()), [])

    def check(folder: Path) -> None:
        told = apply(folder, TWO)
        assert statuses(told) == dict.fromkeys(names, "applied")
        for receipt in told:
            expect(folder / receipt["copy"], TWO)
            assert receipt["after"] == sha256((folder / receipt["copy"]).read_bytes()).hexdigest()
            assert receipt["before"] != receipt["after"]
        assert {p.name for p in folder.iterdir()} == {*names, "own"}

    steps = crashing(setup, lambda f: void(apply(f, TWO)), check, tmp_path)
    assert steps > 30


def test_killed_at_every_step_of_keeping_an_older_model(tmp_path: Path) -> None:
    def setup(folder: Path) -> None:
        registry(folder).add(save(folder / "m.pt", cases.model()), [])
        apply(folder, ONE)
        save(folder / "m.pt", cases.model(4))

    def check(folder: Path) -> None:
        """The client saves again, as it would when it trains again, from the forgotten model."""
        read = cases.read((folder / "m.pt").read_bytes())
        states = (cases.model(4), apply_update(cases.model(4), ONE))
        assert any(all((read[n] == s[n]).all() for n in s) for s in states)
        registry(folder).add(save(folder / "m.pt", cases.model(8)), [ONE.digest])
        apply(folder, TWO)
        expect(folder / "m.pt", TWO, state=cases.model(8))

    assert crashing(setup, lambda f: registry(f).add(f / "m.pt", []), check, tmp_path) > 10


def void(_: object) -> None:
    pass


# --------------------------------------------------------------------------- one federation in a folder
def test_another_federation_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [], run=1)
    registry(tmp_path).apply(ONE, cases.SIGNATURE, store="a" * 64, run=1)
    expect(path, ONE)
    save(path, cases.model())
    for go in (
        lambda: registry(tmp_path).add(path, [], run=2),
        lambda: registry(tmp_path).add(save(tmp_path / "new.pt", cases.model()), [], run=2),
    ):
        with pytest.raises(CopyError, match=r"updates of another run .* a folder of its own, or remove"):
            go()
    expect(path)
    with pytest.raises(StoreError, match=r"is a{12}, and this update is of the store b{12}"):
        registry(tmp_path).apply(TWO, cases.SIGNATURE, store="b" * 64, run=2)
    expect(path)


def test_a_later_run_of_the_same_federation_goes_on(tmp_path: Path) -> None:
    path = save(tmp_path / "last.pt", cases.model())
    registry(tmp_path).add(path, [], run=1)
    registry(tmp_path).apply(ONE, cases.SIGNATURE, store="a" * 64, run=1)
    registry(tmp_path).add(save(path, cases.model()), [], run=1)
    expect(path, ONE)
    registry(tmp_path).add(save(path, cases.model(3)), [ONE.digest], run=2)
    registry(tmp_path).apply(TWO, cases.SIGNATURE, store="a" * 64, run=2)
    expect(path, TWO, state=cases.model(3))
    registry(tmp_path).add(save(path, cases.model(4)), [ONE.digest], run=2)
    expect(path, TWO, state=cases.model(4))
