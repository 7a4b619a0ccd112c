"""The log: what is written when, the chain, keys, and the head file."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cases_audit as cases
import pytest
import references_audit as slow
import runs
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.audit import AuditLog, Entry, SigningKey
from fl_unlearn.audit_entry import canonical, read_head
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.lineage import UMIG
from fl_unlearn.run_store import DATABASE, RunStore
from fl_unlearn.store_folder import make_tables
from fl_unlearn.types import AuditError, LineageError, StoreError


def kinds(store: RunStore) -> list[str]:
    return [e.kind for e in store.audit.entries()]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    SigningKey.generate(tmp_path / "key.pem")
    return tmp_path / "key.pem"


# --------------------------------------------------------------------------- what is written
def test_what_each_operation_leaves(tmp_path: Path) -> None:
    template = cases.Template(tmp_path)
    with RunStore(template.folder, read_only=True) as store:
        entries = list(store.audit.entries())
        ids = {n.name: n.id for n in store.umig}
    assert [e.kind for e in entries] == [
        *("created", "key", "noted", "recorded", "recorded", "recorded", "noted"),
        *("request", "kept", "decided", "applied", "receipt", "verified", "identified", "identified"),
        *("request", "kept", "decided", "applied", "receipt", "verified", "pruned", "receipt"),
        *("document", "document"),
    ]
    by_kind = {e.kind: e.body for e in reversed(entries)}  # the first of each kind
    with RunStore(template.earlier[0], read_only=True) as first:
        info = first.info("g0")
        assert by_kind["recorded"].pop("lineage")
        assert info is not None
        kept = {"g0": [info.digest, info.size]}
        assert by_kind["recorded"] == {"first": 1, "last": 1, "checkpoints": kept}
    second_round = entries[5].body
    assert (second_round["first"], second_round["last"]) == (ids["r2-0"], ids["g2"])
    assert sorted(second_round["checkpoints"]) == ["g2", "r2-0", "r2-1"]
    assert by_kind["noted"]["key"] == "signature"
    decided = by_kind["decided"]
    assert (decided["operation"], decided["update"]) == (cases.A.digest, cases.A.digest)
    assert decided["request"] == {"request": 1, "classes": [1]}
    assert decided["clients"] == ["0", "1", "node-7"]
    assert sorted(decided["checkpoints"]) == ["g1", "g2", "r1-0"]
    with (
        RunStore(template.earlier[3], read_only=True) as before,
        RunStore(template.earlier[4], read_only=True) as after,
    ):
        for name, (was, is_, size) in decided["checkpoints"].items():
            assert was == before.load(name).info.digest
            assert (is_, size) == (after.load(name).info.digest, after.checkpoints.path(name).stat().st_size)
    texts = ["2 copies dampened", "Zürich \ud800"]
    assert by_kind["receipt"] == {"operation": cases.A.digest, "client": "0", "texts": texts}
    assert entries[13].body == {"owner": "0", "client": "hospital", "recorded": True}
    assert entries[14].body == {"owner": "node-7", "client": "clinic", "recorded": False}
    assert by_kind["pruned"] == {"checkpoints": ["r1-0"]}


def test_the_chain_and_the_signatures_are_as_the_book_says(tmp_path: Path) -> None:
    template = cases.Template(tmp_path)
    with RunStore(template.folder, read_only=True) as store:
        previous = "0" * 64
        for number, entry in enumerate(store.audit.entries(), start=1):
            assert entry.seq == number
            assert entry.previous == previous
            assert entry.hash == slow.entry_hash(entry.to_json())
            expected = slow.sign((tmp_path / "key.pem").read_bytes(), store.audit.store_id, entry.hash)
            assert entry.signature == (expected if number > 1 else None)
            assert datetime.fromisoformat(entry.time).utcoffset() == timedelta(0)
            previous = entry.hash
        assert store.audit.head() == entry
        assert list(store.audit.entries(first=20)) == list(store.audit.entries())[19:]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(body=st.dictionaries(st.text(), json_values, max_size=4), kind=st.text())
def test_any_entry_comes_back_as_it_was_written(body: dict[str, Any], kind: str) -> None:
    with UMIG() as umig:
        log = started(umig)
        entry = log.append(kind, body)
        assert entry.body == body
        assert list(log.entries(2)) == [entry]
        assert Entry.parse(json.loads(json.dumps(entry.to_json()))) == entry
        assert canonical(body) == json.dumps(body, sort_keys=True, separators=(",", ":"))


def started(umig: UMIG) -> AuditLog:
    with umig.transaction():
        make_tables(umig)
    log = AuditLog(umig)
    log.start(lambda: None)
    return log


def test_times_are_utc_whatever_the_clock(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        local = timezone(timedelta(hours=2))
        store.audit.clock = lambda: datetime(2026, 1, 2, 1, 4, 5, 678901, local)
        assert store.audit.append("x", {}).time == "2026-01-01T23:04:05.678+00:00"
        store.audit.clock = lambda: datetime(2026, 1, 2, tzinfo=UTC)
        assert store.audit.append("x", {}).time == "2026-01-02T00:00:00.000+00:00"


@pytest.mark.parametrize("body", [{"x": object()}, {"x": float("nan")}, {1: 1, "1": 2, None: {3, 4}}])
def test_what_json_cannot_hold_is_refused_and_nothing_is_lost(body: dict[Any, Any], tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        before = kinds(store)
        with pytest.raises(AuditError, match="cannot keep what JSON cannot hold"):
            store.audit.append("x", body)
        with pytest.raises(AuditError), store.audit.transaction():  # noqa: PT012
            store.umig.add("g9", kind="aggregate", round=9)
            store.audit.append("x", body)
        assert kinds(store) == before
        assert "g9" not in store.umig
        store.audit.append("x", {1: (2, 3)})
        assert list(store.audit.entries())[-1].body == {"1": [2, 3]}
        assert verify_store(store).ok


def test_an_entry_and_what_it_tells_of_are_committed_together(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        before = kinds(store)
        with pytest.raises(ZeroDivisionError), store.round():  # noqa: PT012
            store.record("x", runs.state(5), kind="aggregate", round_=2)
            store.set_meta("k", "v")
            raise ZeroDivisionError
        assert kinds(store) == before
        with store.round():
            pass  # nothing to tell of
        assert kinds(store) == before
        with store.round(), store.round():
            store.record("x", runs.state(5), kind="aggregate", round_=2)
            store.record("y", runs.state(6), kind="aggregate", round_=2)
        assert kinds(store) == [*before, "recorded"]
        assert store.prune() == []
        store.identify("nobody", "x")
        store.identify("0", "hospital")
        store.identify("0", "hospital")
        assert kinds(store) == [*before, "recorded", "identified"]
        assert verify_store(store).ok


def test_entries_of_several_threads(tmp_path: Path) -> None:
    with RunStore(tmp_path / "store", audit_head=tmp_path / "head") as store:
        work = [threading.Thread(target=store.audit.append, args=("x", {"i": i})) for i in range(20)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert sorted(e.body["i"] for e in store.audit.entries(2)) == list(range(20))
        assert verify_store(store).ok
    assert read_head(tmp_path / "head")["seq"] == 21


def test_read_only_writes_nothing(tmp_path: Path) -> None:
    runs.filled(tmp_path / "store", rounds=1).close()
    with RunStore(tmp_path / "store", read_only=True, audit_head=tmp_path / "head") as store:
        with pytest.raises(LineageError, match="opened read-only"):
            store.audit.append("x", {})
        with pytest.raises(LineageError, match="opened read-only"):
            store.set_meta("k", "v")
    assert not (tmp_path / "head").exists()


# --------------------------------------------------------------------------- stores from before
def without_log(folder: Path) -> None:
    with cases.database(folder) as connection:
        connection.execute("DROP TABLE audit")


def test_a_store_from_before_is_adopted_as_it_is(tmp_path: Path) -> None:
    folder = cases.Template(tmp_path).folder
    without_log(folder)
    with RunStore(folder, read_only=True) as store:
        with pytest.raises(AuditError, match="has no audit log; opened once for writing"):
            list(store.audit.entries())
        assert not verify_store(store).ok
    with RunStore(folder, keep=runs.ALL) as store:
        assert kinds(store) == ["created", "adopted"]
        assert verify_store(store).problems == ()
        cases.forget(store, 3, runs.update(3), ["g2", "g1"])
        cases.forget(store, 2, cases.B, ["r2-1"])  # decided before: its checkpoints are not touched again
        store.identify("1", "clinic 2")
        store.save_update(cases.A)
        runs.write_round(store, 3)
        assert verify_store(store).problems == ()
    with cases.database(folder) as connection:
        connection.execute("UPDATE operation SET request = '{}' WHERE id = 1")
    assert cases.findings(folder)


def test_an_empty_store_has_nothing_to_adopt(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        assert kinds(store) == ["created"]
    UMIG(tmp_path / "b.sqlite").close()
    with RunStore(tmp_path) as store:
        assert kinds(store) == ["created"]
        store.record("g0", runs.state(0), kind="initial", round_=0)
    without_log(tmp_path)
    with cases.database(tmp_path) as connection:
        for table in ("checkpoint", "meta WHERE key = 'signature'", "node"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("INSERT INTO meta VALUES ('k', 'v')")
    with RunStore(tmp_path) as store:
        assert kinds(store) == ["created", "adopted"]
        store.record("g0", runs.state(0), kind="initial", round_=0)
        assert verify_store(store).problems == ()


# --------------------------------------------------------------------------- signing
def test_signing_starts_and_goes_on_and_keys_change(key: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    runs.filled(folder, rounds=1).close()
    first, second = SigningKey.load(key).public, SigningKey.generate(tmp_path / "second").public
    for path, number in ((key, 2), (key, 3), (tmp_path / "second", 4)):
        with RunStore(folder, keep=runs.ALL, signing_key=path) as store:
            runs.write_round(store, number)
            assert verify_store(store).problems == ()
    with pytest.raises(AuditError, match=r"is signed \(key .*give its signing_key, or a new one"):
        RunStore(folder)
    with RunStore(folder, read_only=True) as store:
        assert kinds(store)[4:] == ["key", "recorded", "recorded", "key", "recorded"]
        result = verify_store(store, public_key=second)
        assert (result.problems, result.signed, result.entries) == ((), 5, 9)
        (problem,) = verify_store(store, public_key=first).problems
        assert "not signed with the given key up to its end" in str(problem)


def test_a_key_that_cannot_be_read_leaves_the_store_alone(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot read the key"):
        RunStore(tmp_path / "store", signing_key=tmp_path / "nowhere")
    assert not (tmp_path / "store").exists()


def test_a_damaged_log_stops_writing(tmp_path: Path) -> None:
    runs.filled(tmp_path, rounds=1).close()
    with cases.database(tmp_path) as connection:
        connection.execute("UPDATE audit SET body = '{}' WHERE seq = (SELECT max(seq) FROM audit)")
    with pytest.raises(
        AuditError, match=r"entry 4 of the audit log .* was changed: .*restore it from a backup"
    ):
        RunStore(tmp_path)
    with cases.database(tmp_path) as connection:
        connection.execute("DROP TABLE meta")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=f"{DATABASE} is damaged"):
            RunStore(tmp_path, read_only=read_only)
