"""The head file: as new as the database at most, and never put over something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cases_audit as cases
import pytest
import runs
from crashes import killed_at

from fl_unlearn.audit_entry import read_head
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AuditError


def test_the_head_is_published_after_each_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = tmp_path / "elsewhere.json"
    with RunStore(tmp_path / "store", keep=runs.ALL, audit_head=head) as store:
        assert read_head(head)["seq"] == 1
        with store.round():
            store.record("g0", runs.state(100), kind="initial", round_=0)
            assert read_head(head)["seq"] == 1  # not committed yet
            with RunStore(tmp_path / "store", read_only=True) as reader:
                assert verify_store(reader, head=head).pending == ()
        assert read_head(head)["seq"] == 3
        for step in cases.STEPS[1:]:
            step(store)
            entry = store.audit.head()
            assert entry is not None
            told = {"seq": entry.seq, "hash": entry.hash, "signature": None, "store": store.audit.store_id}
            assert {**read_head(head), **told} == read_head(head)
        with store.umig.transaction():
            store.audit.append("x", {})
    assert read_head(head)["seq"] == entry.seq + 1  # at closing at the latest
    store.close()
    assert [r for r in caplog.records if r.levelname != "INFO"] == []


def test_a_head_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with RunStore(tmp_path / "store", audit_head=folder / "head") as store:
        shutil.rmtree(folder)
        store.record("g0", runs.state(100), kind="initial", round_=0)
        assert "the head of the audit log was not written to" in caplog.text
        folder.mkdir()
    assert read_head(folder / "head")["seq"] == 3
    with RunStore(tmp_path / "other", audit_head=tmp_path / "nowhere" / "head") as store:
        store.set_meta("k", "v")
        assert store.umig.get_meta("k") == "v"


def test_a_head_that_does_not_fit_is_not_overwritten(tmp_path: Path) -> None:
    head, folder = tmp_path / "head", tmp_path / "store"
    runs.filled(folder, rounds=1).close()
    shutil.copytree(folder, tmp_path / "older")
    with RunStore(folder, keep=runs.ALL, audit_head=head) as store:
        runs.write_round(store, 2)
    before = head.read_bytes()
    with pytest.raises(AuditError, match=r"lacks entry 5 .* or the store is an older copy"):
        RunStore(tmp_path / "older", audit_head=head)
    with RunStore(tmp_path / "older", keep=runs.ALL) as store:
        runs.write_round(store, 2)
    with pytest.raises(AuditError, match="lacks entry 5"):  # another history of the same length
        RunStore(tmp_path / "older", audit_head=head)
    for other in ("new", "older 2"):
        with pytest.raises(AuditError, match="is the head of another audit log; move the file away"):
            RunStore(tmp_path / other, audit_head=head)
    assert head.read_bytes() == before
    for content in ("garbage", "{}", '{"format":"fl-unlearn audit head 1"}', "[" * 100000):
        head.write_text(content)
        with pytest.raises(AuditError, match="is not a file that an audit log's head was written to"):
            RunStore(folder, audit_head=head)
        assert head.read_text() == content
    head.write_bytes(before)
    RunStore(folder, audit_head=head).close()
    head.unlink()
    RunStore(folder, audit_head=head).close()
    assert head.read_bytes() == before


def test_a_head_in_a_file_of_someone_elses(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot read the head file"):
        RunStore(tmp_path / "store", audit_head=tmp_path)


def test_killed_at_any_step_the_head_is_never_ahead(tmp_path: Path) -> None:
    runs.filled(tmp_path / "template", rounds=1).close()
    head, older = tmp_path / "head", 0
    for at in range(0, 10_000, 3):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(tmp_path / "template", folder)
        head.unlink(missing_ok=True)

        def work(arm: Callable[[], None], folder: Path = folder) -> None:
            with RunStore(folder, keep=runs.ALL, audit_head=head) as store:
                arm()
                runs.write_round(store, 2)
                cases.forget(store, 1, cases.A, ["g1", "g2"])

        killed = killed_at(at, work)
        with RunStore(folder, read_only=True) as store:
            found = [str(p) for p in verify_store(store, head=head).problems]
            assert all("has a file that the log does not tell of" in f for f in found)
            last = store.audit.head()
            older += last is not None and last.seq > read_head(head)["seq"]
        with RunStore(folder, keep=runs.ALL, audit_head=head) as store:
            assert verify_store(store, head=head).problems == ()
            assert store.audit.head().seq == read_head(head)["seq"]  # type: ignore[union-attr]
        shutil.rmtree(folder)
        if not killed:
            break
    assert at > 100
    assert older > 5
