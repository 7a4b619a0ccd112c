"""The log of runs, snapshots and requests: what is kept, what is removed, what is taken up."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs

from fl_unlearn.request_log import PHASES, UNFINISHED
from fl_unlearn.run_log import RunLog
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    CorruptCheckpointError,
    ForgetRequest,
    StoreError,
    StoreFullError,
    UnlearnSettings,
)

THREE = ForgetRequest((3, 1), ("b", "a"), 'free "text"\n\ud800')
SETTINGS = UnlearnSettings(candidates=(2.0, 4.0))


def test_a_run_is_taken_up_by_another_process_only(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        assert store.runs.interrupted(5) is None
        run = store.runs.begin(5, 7)
        store.runs.advance(run.id, 2, 8)
        assert store.runs.interrupted(5) is None, "it is this object's own"
    with RunStore(tmp_path) as store:
        found = store.runs.interrupted(5)
        assert found is not None
        assert (found.rounds, found.done, found.shift, found.finished) == (5, 2, 8, False)
        assert store.runs.interrupted(6) is None, "another number of rounds"
        store.runs.take_up(found)
        store.runs.finish(found.id)
    with RunStore(tmp_path) as store:
        assert store.runs.interrupted(5) is None
        store.runs.reopen()
        assert store.runs.interrupted(5) is not None
        store.runs.begin(5, 9)
    with RunStore(tmp_path) as store:
        found = store.runs.interrupted(5)
        assert found is not None
        assert found.id == 2, "the one before was left for good"


def test_the_second_run_of_a_program_is_not_its_first(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        for _ in range(2):
            run = store.runs.begin(5, 0)
            store.runs.advance(run.id, 1, 0)
    with RunStore(tmp_path) as store:
        assert store.runs.interrupted(5) is None


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupted_request_reopens_a_finished_run(phase: str, tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        run = store.runs.begin(5, 0)
        store.runs.finish(run.id)
        row = store.runs.requests.open(THREE, SETTINGS)
        store.runs.requests.keep_file(row.id, "base", b"data")
        store.runs.requests.note(row.id, phase, {"some": ["facts", 1.5]})
    with RunStore(tmp_path) as store:
        found, log = store.runs.interrupted(5), store.runs.requests
        going_on = phase in UNFINISHED
        assert (found is not None) == going_on
        assert log.read_file(row.id, "base") == (b"data" if going_on else None)
        assert log.row(row.id).facts == {"some": ["facts", 1.5]}
        assert log.row(row.id).request == THREE
        log.give_up(row.id)
        assert store.runs.interrupted(5) is None
        assert list((tmp_path / "requests").iterdir()) == []


def test_requests_are_found_by_run_place_and_content(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        log = store.runs.requests
        before = log.open(THREE, SETTINGS)
        assert before.run is None
        assert log.find(THREE, None) == before
        store.runs.begin(5, 0)
        assert log.find(THREE, None) is None, "another run"
        queued = log.open(THREE, SETTINGS, position=1, after_round=2)
        direct = log.open(THREE, SETTINGS)
        again = log.open(THREE, SETTINGS)
        assert log.find(THREE, 1) == queued
        assert log.find(THREE, 0) is None
        assert log.find(THREE, None) == again != direct
        assert log.find(ForgetRequest((3,)), None) is None


def test_positions_and_keys_of_samples_stay_apart(tmp_path: Path) -> None:
    positions, keys = ({"a": (7, 12)}, {"a": ("12", "7")})
    both = {"a": ("12", "7"), "b": (7, 12)}
    asked = [ForgetRequest(samples=samples) for samples in (positions, keys, both)]
    with RunStore(tmp_path) as store:
        ids = [store.runs.requests.open(request, SETTINGS).id for request in asked]
    with RunStore(tmp_path) as store:
        log = store.runs.requests
        assert [log.row(id_).request.samples for id_ in ids] == [positions, keys, both]
        assert [log.find(request, None).id for request in asked] == ids


def test_snapshots_replace_each_other(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        assert store.runs.snapshot() is None
        run = store.runs.begin(None, 0)
        for data in (b"first", b"second"):
            store.runs.save_snapshot(run.id, "g", data, ["op"])
            store.runs.sweep()
            snapshot = store.runs.snapshot()
            assert snapshot is not None
            assert (snapshot.read(), snapshot.node, snapshot.operations) == (data, "g", ("op",))
            assert list((tmp_path / "recovery").iterdir()) == [snapshot.file]
        store.runs.save_snapshot(run.id, "h", None, [])
        (tmp_path / "recovery" / "torn.safetensors.partial").write_bytes(b"half")
    with RunStore(tmp_path) as store:
        snapshot = store.runs.snapshot()
        assert snapshot is not None
        assert (snapshot.read(), snapshot.node, snapshot.operations) == (None, "h", ())
        assert list((tmp_path / "recovery").iterdir()) == []


def test_a_snapshot_whose_transaction_is_undone_leaves_the_old_one(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        run = store.runs.begin(3, 0)
        store.runs.save_snapshot(run.id, "g", b"first", [])

        def undone() -> None:
            with store.round():
                store.runs.save_snapshot(run.id, "h", b"second", [])
                raise KeyError

        with pytest.raises(KeyError):
            undone()
        snapshot = store.runs.snapshot()
        assert snapshot is not None
        assert snapshot.read() == b"first"


def test_damaged_and_lost_snapshots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunStore(tmp_path) as store:
        run = store.runs.begin(3, 0)
        store.runs.save_snapshot(run.id, "g", b"first", [])
        snapshot = store.runs.snapshot()
        assert snapshot is not None
        assert snapshot.file is not None
        snapshot.file.write_bytes(b"fir")
        with pytest.raises(CorruptCheckpointError, match="was truncated or changed from outside"):
            snapshot.read()
        snapshot.file.unlink()
        assert snapshot.read() is None
        assert "was deleted" in caplog.text
        snapshot.file.mkdir()
        with pytest.raises(StoreError, match="cannot read"):
            snapshot.read()


def test_receipts_are_kept_whatever_clients_send(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        row = store.runs.requests.open(THREE, SETTINGS)
        store.runs.requests.add_receipts(row.id, ["a: x", "b: \ud800", "c: \0"])
        assert store.runs.requests.receipts(row.id) == ("a: x", "b: ?", "c: \0")


def test_a_store_can_be_looked_at_while_it_is_written(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        run = store.runs.begin(3, 0)
        store.runs.save_snapshot(run.id, "g", b"first", [])
        with RunStore(tmp_path, read_only=True) as reader:
            assert reader.runs.last() == run
            assert reader.runs.snapshot() == store.runs.snapshot()


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        (tmp_path / "recovery").write_text("a file")
        run = store.runs.begin(3, 0)
        with pytest.raises(StoreError, match=r"cannot write .*recovery"):
            store.runs.save_snapshot(run.id, "g", b"first", [])
        assert store.runs.snapshot() is None


def test_a_full_disk_keeps_the_old_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_unlearn import run_log

    def full(*_: object) -> None:
        raise StoreFullError("no room left")

    with RunStore(tmp_path) as store:
        run = store.runs.begin(3, 0)
        store.runs.save_snapshot(run.id, "g", b"first", [])
        monkeypatch.setattr(run_log, "write_atomically", full)
        with pytest.raises(StoreFullError):
            store.runs.save_snapshot(run.id, "h", b"second", [])
        snapshot = RunLog(store.umig, tmp_path).snapshot()
        assert snapshot is not None
        assert snapshot.read() == b"first"
