"""Documents wait in the inbox and are taken in: each once, recorded, whatever crashes and whoever forges."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import runs
from cases_requests import Office, later, soon, states
from crashes import killed_at

from fl_unlearn import inbox as inbox_module
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.document_log import COMMITTED, time_text
from fl_unlearn.document_status import find, statuses
from fl_unlearn.inbox import Inbox, InboxFullError
from fl_unlearn.intake import take_in
from fl_unlearn.run_store import DATABASE, RunStore
from fl_unlearn.types import ForgetRequest, RequestError, UnlearnSettings

THREE = ForgetRequest((3,), reason="asked")
OWN = ForgetRequest(samples={"1": ("patient-12",)})


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "run"
    runs.filled(folder, rounds=1).close()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


# --------------------------------------------------------------------------- the inbox
def test_documents_wait_in_the_order_of_arrival(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.waiting() == []
    tickets = [inbox.add(b"%d" % i) for i in range(5)]
    assert inbox.waiting() == tickets
    assert [inbox.read(t, 10) for t in tickets] == [b"0", b"1", b"2", b"3", b"4"]
    assert inbox.read(tickets[0][:-1] + "x", 10) is None
    inbox.cancel(tickets[1])
    inbox.cancel(tickets[1])
    assert inbox.cancellations() == [tickets[1]]
    inbox.remove(tickets[1])
    assert (inbox.waiting(), inbox.cancellations()) == ([t for t in tickets if t != tickets[1]], [])
    with pytest.raises(RequestError, match="no ticket"):
        inbox.cancel("../../etc/passwd")


def test_a_full_inbox_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MOST_WAITING", 2)
    inbox = Inbox(tmp_path)
    inbox.add(b"1")
    inbox.add(b"2")
    with pytest.raises(InboxFullError, match="2 documents wait"):
        inbox.add(b"3")
    assert len(inbox.waiting()) == 2


def test_what_writers_that_died_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    ticket = inbox.add(b"1", refused=("forged", "no"))
    for age in (0.0, 7200.0):
        half = inbox.folder / f"{ticket}x.json.partial"
        half.write_bytes(b"{")
        os.utime(half, (half.stat().st_mtime - age,) * 2)
        inbox.sweep()
        assert half.exists() == (age == 0.0)
    assert inbox.refused(ticket) == ("forged", "no")
    stale = f"{1:020d}-{'a' * 12}"
    (inbox.folder / f"{stale}.refused").write_text("forged\nno")
    inbox.sweep()
    assert inbox.refused(stale) is None


def test_an_adder_killed_at_any_step_leaves_a_whole_document_or_none(tmp_path: Path) -> None:
    at, left = 0, set()
    while True:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        inbox = Inbox(tmp_path / "run")

        def work(count: Callable[[], None], inbox: Inbox = inbox) -> None:
            count()
            inbox.add(b"a document", refused=("forged", "x"))

        died = killed_at(at, work)
        waiting = inbox.waiting()
        left.add(len(waiting))
        for ticket in waiting:
            assert inbox.read(ticket, 100) == b"a document"
            assert inbox.refused(ticket) == ("forged", "x"), "it is never there without its refusal"
        if not died:
            break
        at += 1
    assert left == {0, 1}
    assert at > 5


# --------------------------------------------------------------------------- taking in
def test_each_is_accepted_or_refused_with_its_reason_and_recorded(folder: Path, office: Office) -> None:
    good = office.document(THREE, deadline=soon())
    forged = replace(office.document(THREE), requester="operator", request=ForgetRequest((1,)))
    cases = [
        (good.to_bytes(), ("accepted", None)),
        (good.to_bytes(), ("refused", "replayed")),
        (office.document(OWN, "hospital").to_bytes(), ("accepted", None)),
        (office.document(THREE, key=None).to_bytes(), ("refused", "unsigned")),
        (office.document(THREE, "hospital").to_bytes(), ("refused", "not-allowed")),
        (office.document(THREE, "hospital", key="operator").to_bytes(), ("refused", "wrong-key")),
        (forged.to_bytes(), ("refused", "forged")),
        (office.document(THREE, "nobody", key="operator").to_bytes(), ("refused", "unknown-requester")),
        (office.document(THREE, now=soon(2), deadline=soon(3)).to_bytes(), ("refused", "from-the-future")),
        (office.document(THREE, now=soon(-3), deadline=soon(-2)).to_bytes(), ("expired", "expired")),
        (b"{}", ("refused", "malformed")),
        (b"\xff" * 10, ("refused", "malformed")),
        (b"[" * 100_000, ("refused", "malformed")),
        (b" " * (MAX_BYTES + 5), ("refused", "malformed")),
    ]
    inbox = Inbox(folder)
    for data, _ in cases:
        inbox.add(data)
    with RunStore(folder) as store:
        taken = take_in(store, office.policy)
        assert states(store) == [wanted for _, wanted in cases]
        assert taken == store.documents.rows()
        assert all(row.message for row in taken if row.code)
        entries = [e.body for e in store.audit.entries() if e.kind == "document"]
        assert [(e["document"], e["state"], e["code"]) for e in entries] == [
            (row.ticket, row.state, row.code) for row in taken
        ]
        assert store.documents.content(taken[0]) == good.to_bytes()
        assert store.documents.content(taken[1]) is None
        assert verify_store(store).problems == ()
        assert take_in(store, office.policy) == []
    assert list(inbox.folder.iterdir()) == []


def test_without_a_policy_documents_still_count_once_and_expire(folder: Path, office: Office) -> None:
    document = office.document(THREE, key=None, deadline=soon())
    late = office.document(THREE, key=None, deadline=soon(0.5))
    with RunStore(folder) as store:
        for data in (document.to_bytes(), document.to_bytes()):
            store.inbox.add(data)
        take_in(store)
        later(store, 0.75)
        store.inbox.add(late.to_bytes())
        take_in(store)
        assert states(store) == [("accepted", None), ("refused", "replayed"), ("expired", "expired")]
        assert "nobody checked who asks" in store.documents.row(1).message


def test_what_is_refused_uses_up_no_id(folder: Path, office: Office) -> None:
    """Else whoever sees a document on its way could shut it out with a forgery, or by cancelling one."""
    genuine = office.document(THREE)
    forgery = replace(genuine, request=ForgetRequest((1,)))
    with RunStore(folder) as store:
        store.inbox.add(forgery.to_bytes())
        store.inbox.cancel(store.inbox.add(forgery.to_bytes()))
        store.inbox.add(genuine.to_bytes())
        take_in(store, office.policy)
        assert states(store) == [("refused", "forged"), ("refused", "forged"), ("accepted", None)]
        assert find(store, genuine.id).state == "accepted"
        assert find(store, genuine.id[:8]).ticket == store.documents.row(3).ticket


def test_cancelled_before_and_after_being_taken_in(folder: Path, office: Office) -> None:
    first, second = office.document(THREE), office.document(ForgetRequest((1,)))
    with RunStore(folder) as store:
        store.inbox.cancel(store.inbox.add(first.to_bytes()))
        kept = store.inbox.add(second.to_bytes())
        assert [s.message for s in statuses(store)] == ["cancellation was asked for", ""]
        take_in(store, office.policy)
        assert states(store) == [("cancelled", None), ("accepted", None)]
        store.inbox.add(first.to_bytes())
        store.inbox.cancel(kept)
        take_in(store, office.policy)
        assert states(store) == [("cancelled", None), ("cancelled", None), ("refused", "replayed")]
        assert store.inbox.cancellations() == []
        assert verify_store(store).problems == ()


def test_a_document_being_served_is_not_cancelled(folder: Path, office: Office) -> None:
    with RunStore(folder) as store:
        ticket = store.inbox.add(office.document(THREE).to_bytes())
        take_in(store, office.policy)
        store.runs.requests.open(THREE, UnlearnSettings(), position=-1)
        store.inbox.cancel(ticket)
        take_in(store, office.policy)
        status = find(store, ticket)
        assert (status.state, status.phase, status.request) == ("serving", "opened", 1)
        assert store.inbox.cancellations() == []


def test_what_was_found_to_be_refused_is_not_accepted_by_a_laxer_run(folder: Path, office: Office) -> None:
    with RunStore(folder) as store:
        store.inbox.add(office.document(THREE).to_bytes(), refused=("not-allowed", "not by this policy"))
        store.inbox.add(office.document(THREE).to_bytes(), refused=("\x1b[31m", "odd"))
        assert [(s.state, s.code) for s in statuses(store)][:1] == [("refused", "not-allowed")]
        take_in(store, None)
        assert states(store) == [("refused", "not-allowed")] * 2
        assert store.documents.row(1).message == "not by this policy"


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_is_no_file_is_not_followed(what: str, folder: Path, tmp_path: Path, office: Office) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(office.document(THREE).to_bytes())
    with RunStore(folder) as store:
        ticket = store.inbox.add(b"x")
        path = store.inbox.folder / f"{ticket}.json"
        path.unlink()
        if what == "link":
            path.symlink_to(secret)
        elif what == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        store.inbox.add(office.document(THREE).to_bytes())
        take_in(store, office.policy)
        assert states(store) == [("refused", "malformed"), ("accepted", None)]
        take_in(store, office.policy)
        assert len(states(store)) == 2
    assert secret.exists()


# --------------------------------------------------------------------------- crashes and company
def test_killed_at_any_step_nothing_is_lost_and_nothing_counts_twice(
    template: Path, tmp_path: Path, office: Office
) -> None:
    documents = [b"nonsense", office.document(OWN, "hospital").to_bytes()]
    wanted = [("refused", "malformed"), ("accepted", None)]
    prepared = tmp_path / "prepared"
    shutil.copytree(template, prepared)
    for data in documents:
        Inbox(prepared).add(data)
    at, folder = 0, tmp_path / "run"
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(prepared, folder)

        def work(count: Callable[[], None]) -> None:
            with RunStore(folder) as store:
                count()
                take_in(store, office.policy)

        died = killed_at(at, work)
        with RunStore(folder) as store:
            take_in(store, office.policy)
            assert states(store) == wanted, at
            if at % 5 == 0:
                assert verify_store(store).problems == ()
        assert list((folder / "inbox").iterdir()) == []
        if not died:
            break
        at += 1
    assert at > 20


def test_many_add_while_the_holder_takes_in(folder: Path, office: Office) -> None:
    documents = [[office.document(THREE).to_bytes() for _ in range(8)] for _ in range(3)]

    def bring(mine: list[bytes]) -> None:
        for data in mine:
            Inbox(folder).add(data)

    fork = multiprocessing.get_context("fork")
    with RunStore(folder) as store:
        others = [fork.Process(target=bring, args=(mine,)) for mine in documents]
        for other in others:
            other.start()
        while any(other.is_alive() for other in others):
            take_in(store, office.policy)
        for other in others:
            other.join()
            assert other.exitcode == 0
        take_in(store, office.policy)
        assert states(store) == [("accepted", None)] * 24


# --------------------------------------------------------------------------- the table and the log
def test_any_change_of_the_table_is_noticed(folder: Path, office: Office, tmp_path: Path) -> None:
    with RunStore(folder) as store:
        store.inbox.add(office.document(THREE, deadline=soon()).to_bytes())
        store.inbox.add(b"nonsense")
        take_in(store, office.policy)
    changes = [
        "DELETE FROM document WHERE seq = 2",
        "DELETE FROM document",
        "DROP TABLE document",
        "UPDATE document SET state = 'accepted' WHERE seq = 2",
        "UPDATE document SET requester = 'hospital' WHERE seq = 1",
        "UPDATE document SET deadline = NULL",
        "UPDATE document SET content = x'00' WHERE seq = 1",
        "UPDATE document SET content = NULL WHERE seq = 1",
        "UPDATE document SET seq = 7 WHERE seq = 2",
        "INSERT INTO document SELECT 3, 'x', id, requester, sha256, received, deadline, state, code, "
        "message, changed, content FROM document WHERE seq = 1",
    ]
    for change in changes:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        with closing(sqlite3.connect(copy / DATABASE, isolation_level=None)) as connection:
            connection.execute(change)
        with RunStore(copy, read_only=True) as store:
            assert any("table document" in str(p) for p in verify_store(store).problems), change


def test_a_store_of_an_older_version(folder: Path, office: Office) -> None:
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("DROP TABLE document")
    with RunStore(folder, read_only=True) as store:
        assert statuses(store) == []
        assert verify_store(store).problems == ()
    Inbox(folder).add(office.document(THREE).to_bytes())
    with RunStore(folder, read_only=True) as store:
        assert [s.state for s in statuses(store)] == ["waiting"]
    with RunStore(folder) as store:
        take_in(store, office.policy)
        assert states(store) == [("accepted", None)]
        assert verify_store(store).problems == ()


def test_a_log_begun_anew_adopts_the_documents(folder: Path, office: Office) -> None:
    with RunStore(folder) as store:
        store.inbox.add(office.document(THREE).to_bytes())
        store.inbox.add(b"nonsense")
        take_in(store, office.policy)
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("DROP TABLE audit")
    with RunStore(folder) as store:
        assert verify_store(store).problems == ()
        assert states(store) == [("accepted", None), ("refused", "malformed")]


# --------------------------------------------------------------------------- following
@pytest.mark.parametrize(("decided", "met"), [(0.5, True), (1.5, False)])
def test_whether_a_deadline_was_met_is_told_by_the_time_of_the_decision(
    decided: float, met: bool, folder: Path, office: Office
) -> None:
    """It can be noted later: the server may have died in between."""
    with RunStore(folder) as store:
        ticket = store.inbox.add(office.document(THREE, deadline=soon(1)).to_bytes())
        (row,) = take_in(store, office.policy)
        assert find(store, ticket).deadline_met is None
        request = store.runs.requests.open(THREE, UnlearnSettings(), position=-row.seq)
        later(store, decided)
        store.operations.decide("f" * 64, "f" * 64, {"request": request.id, "classes": [3]}, (), ())
        later(store, 5)
        store.documents.change(row, COMMITTED, request=request.id)
        status = find(store, ticket)
        assert (status.state, status.deadline_met) == ("committed", met)
        assert status.changed is not None
        assert abs(_hours(status.changed) - _hours(time_text(soon(decided)))) < 0.1


def _hours(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() / 3600


def test_find_wants_one(folder: Path, office: Office) -> None:
    with RunStore(folder) as store:
        store.inbox.add(b"nonsense")
        ids = [office.document(THREE) for _ in range(2)]
        for document in ids:
            store.inbox.add(document.to_bytes())
        for name in ("", "0179", "f" * 32):
            with pytest.raises(RequestError, match="documents in"):
                find(store, name)
        assert find(store, ids[1].id).id == ids[1].id
        assert [s.id for s in statuses(store)] == [None, ids[0].id, ids[1].id]
        assert json.dumps([s.to_json() for s in statuses(store)])
