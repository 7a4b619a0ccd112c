from __future__ import annotations

import re
from pathlib import Path

import pytest
import runs
from cases_cli import forget, interrupted, listing, run, run_json, run_lines

from fl_unlearn.apply import stage
from fl_unlearn.cli import leftovers
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with runs.filled(tmp_path / "run") as store:
        forget(store)
    return tmp_path / "run"


def file_of(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / f"{name}.safetensors"


# --------------------------------------------------------------------------- list
def test_list(folder):
    lines = run_lines("checkpoints", "list", folder)
    with RunStore(folder, read_only=True) as store:
        (digest,) = (o.client_update for o in store.operations.all())
        for line in lines:
            info, path = store.info(line["name"]), store.checkpoints.path(line["name"])
            assert (line["digest"], line["bytes"], line["file"]) == (info.digest, info.size, str(path))
            assert line["applied"] == list(store.load(line["name"]).applied)
    assert [(line["name"], line["kind"], line["round"]) for line in lines[:3]] == [
        ("g0", "initial", 0),
        ("r1-0", "client-update", 1),
        ("r1-1", "client-update", 1),
    ]
    assert [line["applied"] for line in lines] == [[], [], *[[digest]] * 5]
    text = run("checkpoints", "list", folder).stdout
    assert re.search(rf"g2 +aggregate +2 +[\d.]+ kB +1 +{lines[-1]['digest'][:12]}", text)
    assert "7 checkpoints" in text


def test_list_shows_what_it_can_of_damaged_files(folder):
    file_of(folder, "g1").write_bytes(b"torn")
    file_of(folder, "g2").unlink()
    lines = {line["name"]: line for line in run_lines("checkpoints", "list", folder)}
    assert lines["g1"]["applied"] is lines["g2"]["applied"] is None
    assert re.search(r"g1 .* unreadable", run("checkpoints", "list", folder).stdout)


# --------------------------------------------------------------------------- verify
def test_verify_finds_nothing_in_a_sound_store(folder):
    found = run_json("checkpoints", "verify", folder)
    assert found == {"checked": 7, "problems": [], "pending": [], "ok": True}
    assert run("checkpoints", "verify", folder).stdout == "no problem in 7 checkpoints\n"


def test_verify_finds_every_problem(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.safetensors"
    truncated, changed, linked = (file_of(folder, name) for name in ("g0", "r1-0", "r1-1"))
    truncated.write_bytes(truncated.read_bytes()[:-1])
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    file_of(folder, "g1").unlink()
    file_of(folder, "g2").write_bytes(b"")
    file_of(folder, "stranger").write_bytes(data)
    before = listing(tmp_path)
    found = run_json("checkpoints", "verify", folder, code=1)
    assert [p["name"] for p in found["problems"]] == ["g0", "r1-0", "r1-1", "g1", "g2", "stranger"]
    assert (found["ok"], found["checked"], found["pending"]) == (False, 7, [])
    text = run("checkpoints", "verify", folder, code=1).stdout
    assert "6 problems in 7 checkpoints" in text
    for word in ("truncated", "symbolic link", "missing", "does not know this file"):
        assert word in text
    assert listing(tmp_path) == before


def test_an_interrupted_application_is_no_problem_before_or_after_its_files_are_in_place(tmp_path):
    with runs.filled(tmp_path / "run") as store:
        changed = interrupted(store)
        store.checkpoints.promote(changed[0])
    found = run_json("checkpoints", "verify", store.folder)
    assert (found["problems"], found["pending"]) == ([], [changed[0]])
    assert "opening the store to write finishes it" in run("checkpoints", "verify", store.folder).stdout
    file_of(store.folder, changed[0]).write_bytes(b"neither")
    found = run_json("checkpoints", "verify", store.folder, code=1)
    assert [p["name"] for p in found["problems"]] == [changed[0]]


def test_verify_beside_a_run_that_dampens_and_prunes(folder, monkeypatch):
    """What the ledger said when verifying began is not held against files that changed since."""
    from fl_unlearn.cli import stores

    real = stores.kept

    def kept_and_then(store):
        found = real(store)
        with RunStore(folder, keep=KeepPolicy(byte_budget=2000)) as writer:
            update = runs.update(seed=1)
            stage(writer, {"g2": update}, update).commit({}, ())
            assert writer.prune()
        return found

    monkeypatch.setattr(stores, "kept", kept_and_then)
    assert run_json("checkpoints", "verify", folder)["ok"]


def test_a_file_that_a_run_has_just_written_is_no_stranger(folder):
    with RunStore(folder) as writer:
        writer.checkpoints.write("not recorded yet", runs.state(0))
        assert run_json("checkpoints", "verify", folder)["ok"]
    assert not run_json("checkpoints", "verify", folder, code=1)["ok"]


# --------------------------------------------------------------------------- gc
def littered(folder: Path) -> dict[str, str]:
    """Put leftovers of every sort into a store; returns file and reason."""
    with RunStore(folder) as store:
        update = runs.update(seed=5)
        unused = store.save_update(update)
        staged = stage(store, {"g0": update}, update)
        assert staged.files
        store.checkpoints.write("stray", runs.state(1))
    (folder / "checkpoints" / "g9.safetensors.partial").write_bytes(b"half")
    (folder / "updates" / "u.safetensors.partial").write_bytes(b"half")
    (folder / "updates" / "notes.txt").write_text("mine")
    (folder / "updates" / "own.safetensors").write_text("mine")
    return {
        "g9.safetensors.partial": "half written",
        "u.safetensors.partial": "half written",
        "g0.safetensors.redo": "never decided",
        "stray.safetensors": "not in the ledger",
        unused.name: "update out of use",
    }


def test_gc_does_what_its_dry_run_says_and_nothing_else(folder):
    expected = littered(folder)
    before = listing(folder)
    planned = run_json("gc", folder, "--dry-run")
    assert {Path(r["file"]).name: r["why"] for r in planned["removed"]} == expected
    assert listing(folder) == before
    done = run_json("gc", folder)
    assert {**planned, "dry_run": False} == done
    assert done["bytes_freed"] == sum(r["bytes"] for r in done["removed"])
    after = listing(folder)
    gone = {Path(name).name for name in before.keys() - after.keys()}
    assert gone == set(expected)
    assert not after.keys() - before.keys()
    unchanged = {n for n in after if n != "lineage.sqlite"}
    assert all(before[n] == after[n] for n in unchanged)
    with RunStore(folder, read_only=True) as store:
        runs.assert_sound(store)
    assert run_json("gc", folder)["removed"] == []
    assert run("gc", folder).stdout == "nothing to remove\n"


def test_gc_says_what_it_did(folder):
    littered(folder)
    planned = run("gc", folder, "--dry-run").stdout
    assert re.search(r"would remove +because +size", planned)
    assert "would free" in planned
    text = run("gc", folder).stdout
    assert re.search(r"stray\.safetensors +not in the ledger +[\d.]+ kB", text)
    assert re.search(r"freed .* kB", text)


def test_gc_keeps_the_updates_that_clients_wait_for_and_checkpoints_had(folder):
    with RunStore(folder) as store:
        own, client_update = runs.update(seed=7), runs.update(seed=8)
        stage(store, {"g1": own, "g2": client_update}, client_update).commit({}, ("0",))
    run("gc", folder)
    with RunStore(folder, read_only=True) as store:
        for digest in (own.digest, client_update.digest, runs.update().digest):
            assert store.update(digest).digest == digest


def test_gc_finishes_what_was_decided(tmp_path):
    with runs.filled(tmp_path / "run") as store:
        changed = interrupted(store)
    assert run_json("gc", store.folder, "--dry-run")["finished"] == changed
    with RunStore(store.folder, read_only=True) as reader:
        assert reader.operations.pending() == set(changed)
    assert "put 2 decided checkpoints in place" in run("gc", store.folder).stdout
    with RunStore(store.folder, read_only=True) as reader:
        runs.assert_sound(reader)
        assert all(reader.load(name).applied for name in changed)


def test_gc_prunes_to_a_byte_budget(folder):
    sizes = {line["name"]: line["bytes"] for line in run_lines("checkpoints", "list", folder)}
    budget = sizes["g0"] + sizes["g2"] + sizes["r2-1"]
    planned = run_json("gc", folder, "--byte-budget", budget, "--dry-run")
    assert len(run_lines("checkpoints", "list", folder)) == 7
    done = run_json("gc", folder, "--byte-budget", budget)
    assert done["pruned"] == planned["pruned"]
    assert [p["name"] for p in done["pruned"]] == ["r1-0", "r1-1", "g1", "r2-0"]
    assert done["bytes_freed"] == sum(sizes[p["name"]] for p in done["pruned"])
    assert done["notes"] == []
    assert [line["name"] for line in run_lines("checkpoints", "list", folder)] == ["g0", "r2-1", "g2"]
    run("checkpoints", "verify", folder)


def test_a_byte_budget_that_cannot_be_met(folder):
    for extra in (["--dry-run"], []):
        (note,) = run_json("gc", folder, "--byte-budget", 1, *extra)["notes"]
        assert "initial and newest global models always stay" in note
    assert [line["name"] for line in run_lines("checkpoints", "list", folder)] == ["g0", "g2"]


def test_updates_that_only_pruned_checkpoints_had_go_too(tmp_path):
    with runs.filled(tmp_path / "run") as store:
        own = runs.update(seed=7)
        path = store.save_update(own)
        state = runs.state(3)
        store.record(
            "x", state, kind="client-update", round_=2, parents={"g1": 1.0}, owner="0", applied=(own.digest,)
        )
    assert run_json("gc", store.folder)["removed"] == []
    planned = run_json("gc", store.folder, "--byte-budget", 1, "--dry-run")
    done = run_json("gc", store.folder, "--byte-budget", 1)
    assert [r["file"] for r in done["removed"]] == [r["file"] for r in planned["removed"]] == [str(path)]


def test_no_update_goes_while_a_checkpoint_cannot_tell_which_it_had(folder):
    littered(folder)
    file_of(folder, "g1").write_bytes(b"torn")
    done = run_json("gc", folder)
    assert "update out of use" not in {r["why"] for r in done["removed"]}
    assert "g1" in done["notes"][0]


def test_gc_does_not_follow_links_out_of_the_store(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"x" * 1000)
    file_of(folder, "stray").symlink_to(outside)
    run("gc", folder)
    assert outside.read_bytes() == b"x" * 1000
    assert file_of(folder, "stray").is_symlink()  # not of our making


def test_gc_waits_for_no_run_but_says_that_one_writes(folder):
    with RunStore(folder):
        failed = run("gc", folder, code=2)
        assert "is being written by another run" in failed.stderr
        assert "a run is writing" in run("gc", folder, "--dry-run").stdout


def test_the_database_is_compacted(folder):
    with RunStore(folder) as store:
        for i in range(200):
            store.umig.set_meta(f"k{i}", "x" * 1000)
        with store.umig.transaction():
            store.umig.connection.execute("DELETE FROM meta WHERE key LIKE 'k%'")
    size = (folder / "lineage.sqlite").stat().st_size
    run("gc", folder)
    assert (folder / "lineage.sqlite").stat().st_size < size - 150_000
    with RunStore(folder, read_only=True) as store:
        runs.assert_sound(store)


def test_what_a_run_is_writing_is_found_without_touching_it(folder):
    with RunStore(folder) as store:
        littered_partial = folder / "checkpoints" / "a.safetensors.partial"
        littered_partial.write_bytes(b"x")
        assert [f.where for f in leftovers.find(store).files] == [str(littered_partial)]
        assert littered_partial.exists()
