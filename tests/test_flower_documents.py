"""Documents that wait in the store are taken in and served between rounds, and at the end of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
from cases_requests import Office, later, soon, states
from flwr.app import ArrayRecord, Message
from restarts import after_decision, after_phase, before, check_sound, die, killed

from fl_unlearn import budget
from fl_unlearn.audit_certificate import check_certificate, export_certificate
from fl_unlearn.audit_keys import PublicKey, SigningKey
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.document_log import DocumentLog
from fl_unlearn.document_status import statuses
from fl_unlearn.flower import UnlearningStrategy, forgotten
from fl_unlearn.flower.reporting import build_report
from fl_unlearn.inbox import Inbox
from fl_unlearn.intake import take_in
from fl_unlearn.report import write_report
from fl_unlearn.report_record import UnlearnReport
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, PolicyFileError, StoreFullError, UnlearnSettings
from fl_unlearn.verify import score_checkpoints

THREE = ForgetRequest((3,), reason="asked")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


def start() -> ArrayRecord:
    return ArrayRecord(fed.build_model().state_dict())


def strategy_of(folder: Path, office: Office | None = None, **kwargs: Any) -> UnlearningStrategy:
    policy = office.path if office else None
    return UnlearningStrategy(fed.fedavg(), store=folder, deterministic=True, policy=policy, **kwargs)


def arriving(documents: dict[int, list[bytes]], folder: Path) -> fed.LocalGrid:
    """A federation during whose n-th message documents arrive, as from another process."""
    sent = [0]

    def tamper(_: Message, reply: Message) -> Message:
        sent[0] += 1
        for data in documents.get(sent[0], []):
            Inbox(folder).add(data)
        return reply

    return fed.grid(tamper)


def test_a_document_that_comes_during_a_round_is_served_at_its_end(tmp_path: Path, office: Office) -> None:
    document = office.document(THREE, deadline=soon())
    network = arriving({fed.CLIENTS + 2: [document.to_bytes()]}, tmp_path)
    strategy = strategy_of(tmp_path, office)
    strategy.start(network, start(), num_rounds=3)
    (result,) = strategy.results
    assert result.committed
    assert result.document is not None
    assert (result.document.id, result.document.requester) == (document.id, "operator")
    assert (result.document.state, result.document.deadline_met) == ("committed", True)
    store = strategy.store
    (row,) = store.documents.rows()
    request = store.runs.requests.row(1)
    assert (store.documents.request(row), request.position) == ((1, "done"), -1)
    assert "r0001-global" in result.applied
    assert max(store.umig.node(n).round for n in result.affected) == 1, "served after the first round"
    kinds = [kind for kind, _ in network.log]
    assert kinds.index("query.unlearn_fisher") < len(kinds) - kinds[::-1].index("train"), "training went on"
    assert store.inbox.waiting() == []
    check_sound(strategy)
    assert verify_store(store).problems == ()


def test_clients_are_told_what_a_document_had_forgotten(tmp_path: Path, office: Office) -> None:
    """Every client that trains after it was served, and none before."""
    told: list[bool] = []

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            told.append(bool(forgotten.read(message.content)))
            if len(told) == fed.CLIENTS:
                Inbox(tmp_path).add(office.document(THREE).to_bytes())
        return reply

    strategy = strategy_of(tmp_path, office)
    result = strategy.start(fed.grid(tamper), start(), num_rounds=3)
    assert told == [False] * fed.CLIENTS + [True] * 2 * fed.CLIENTS
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0


def test_documents_that_cannot_be_served_do_not_stop_the_training(tmp_path: Path, office: Office) -> None:
    """Nobody holds class 9; no parameter has the scope's name."""
    strategy = strategy_of(tmp_path, office)
    bad = [
        office.document(ForgetRequest((9,))),
        office.document(THREE, scope="no.such.parameter"),
        office.document(THREE, key=None),
    ]
    for document in bad:
        strategy.store.inbox.add(document.to_bytes())
    strategy.store.inbox.add(b"nonsense")
    result = strategy.start(fed.grid(), start(), num_rounds=2)
    assert strategy.store.umig.last_round() == 2
    assert states(strategy.store) == [
        ("failed", "failed"),
        ("failed", "failed"),
        ("refused", "unsigned"),
        ("refused", "malformed"),
    ]
    assert [r.document and r.document.state for r in strategy.results] == ["failed", "failed"]
    assert "RequestError" in strategy.store.documents.row(1).message
    assert result.arrays is not None
    assert verify_store(strategy.store).problems == ()


def test_a_document_refused_by_calibration_says_so(tmp_path: Path, office: Office) -> None:
    strategy = strategy_of(tmp_path, office, settings=UnlearnSettings(threshold=1e6))
    network = fed.grid()
    strategy.start(network, start(), num_rounds=1)
    strategy.store.inbox.add(office.document(THREE, deadline=soon()).to_bytes())
    strategy.start(network, start(), num_rounds=0)
    (status,) = statuses(strategy.store)
    assert (status.state, status.code) == ("refused-by-calibration", "calibration")
    assert status.deadline_met is False
    assert status.message.startswith("refused: ")


def test_without_rounds_what_waits_is_served_on_the_stored_model(tmp_path: Path, office: Office) -> None:
    strategy_of(tmp_path, office).start(fed.grid(), start(), num_rounds=2)
    document = office.document(THREE, scope="deep")
    Inbox(tmp_path).add(document.to_bytes())
    network = fed.grid()
    strategy = strategy_of(tmp_path, office)
    result = strategy.start(network, start(), num_rounds=0)
    assert "train" not in {kind for kind, _ in network.log}
    assert strategy.results[0].committed
    assert strategy.results[0].settings.erase == "auto", "the document's scope"
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 0) > 0.9, "not the model that was given"
    assert len(strategy.store.umig) == len(list(strategy.store.umig))
    assert strategy.store.runs.last().id == 1, "no run was begun"  # type: ignore[union-attr]


def test_serving_without_rounds_leaves_an_interrupted_run_to_go_on(tmp_path: Path, office: Office) -> None:
    def work() -> None:
        strategy_of(tmp_path, office).start(arriving_death(), start(), num_rounds=3)

    def arriving_death() -> fed.LocalGrid:
        left = [2 * fed.CLIENTS + 2]

        def tamper(_: Message, reply: Message) -> Message:
            left[0] -= 1
            if left[0] == 0:
                die()
            return reply

        return fed.grid(tamper)

    assert killed(work)
    Inbox(tmp_path).add(office.document(THREE).to_bytes())
    strategy = strategy_of(tmp_path, office)
    strategy.start(fed.grid(), start(), num_rounds=0)
    assert strategy.results[0].committed
    strategy.store.close()
    strategy = strategy_of(tmp_path, office)
    result = strategy.start(fed.grid(), start(), num_rounds=3)
    assert strategy.store.umig.last_round() == 3
    assert [r.committed for r in strategy.results] == [True], "served once, and recalled"
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    check_sound(strategy)


def test_what_waited_too_long_expires(tmp_path: Path, office: Office) -> None:
    strategy = strategy_of(tmp_path, office)
    store = strategy.store
    store.inbox.add(office.document(THREE, deadline=soon(1)).to_bytes())
    take_in(store, office.policy)
    assert states(store) == [("accepted", None)]
    later(store, 2)
    strategy.start(fed.grid(), start(), num_rounds=1)
    assert states(store) == [("expired", "expired")]
    assert strategy.results == []
    assert store.operations.all() == []


def test_accepted_under_a_policy_that_has_changed(tmp_path: Path, office: Office) -> None:
    strategy = strategy_of(tmp_path / "run", office)
    strategy.store.inbox.add(office.document(THREE).to_bytes())
    take_in(strategy.store, office.policy)
    strategy.store.close()
    stricter = Office(tmp_path / "other")  # with other keys
    strategy = strategy_of(tmp_path / "run", stricter)
    strategy.start(fed.grid(), start(), num_rounds=1)
    assert states(strategy.store) == [("refused", "wrong-key")]


def test_age_counts_until_it_was_accepted(tmp_path: Path, office: Office) -> None:
    """A document that was accepted must not be lost because nobody trained for a month."""
    strategy = strategy_of(tmp_path, office)
    strategy.start(fed.grid(), start(), num_rounds=1)
    strategy.store.inbox.add(office.document(THREE).to_bytes())
    take_in(strategy.store, office.policy)
    later(strategy.store, 24 * 40)
    strategy.start(fed.grid(), start(), num_rounds=0)
    assert states(strategy.store) == [("committed", None)]


def test_a_policy_that_cannot_be_used_is_told_of_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError):
        UnlearningStrategy(fed.fedavg(), store=tmp_path / "run", policy=tmp_path / "none.toml")
    UnlearningStrategy(fed.fedavg(), store=tmp_path / "run").store.close()


def test_a_full_disk_delays_documents_and_no_training(
    tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = strategy_of(tmp_path, office)
    strategy.store.inbox.add(office.document(THREE).to_bytes())
    with monkeypatch.context() as m:

        def full(*_: Any, **__: Any) -> None:
            raise StoreFullError("no room left")

        m.setattr(DocumentLog, "add", full)
        strategy.start(fed.grid(), start(), num_rounds=1)
    assert strategy.store.umig.last_round() == 1
    assert [s.state for s in statuses(strategy.store)] == ["waiting"]
    strategy.start(fed.grid(), start(), num_rounds=0)
    assert states(strategy.store) == [("committed", None)]


# --------------------------------------------------------------------------- crashes
CRASHES = {
    "fisher": after_phase("fisher"),
    "decided": after_decision,
    "done": after_phase("done"),
    "before what became of it is noted": before(DocumentLog, "change"),
}


@pytest.mark.parametrize("where", CRASHES.values(), ids=CRASHES.keys())
def test_a_server_that_died_serves_each_document_once(
    where: Callable[..., None], tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = office.document(THREE, deadline=soon())

    def work() -> None:
        where(monkeypatch)
        network = arriving({fed.CLIENTS + 2: [document.to_bytes()]}, tmp_path)
        strategy_of(tmp_path, office).start(network, start(), num_rounds=2)

    assert killed(work)
    monkeypatch.undo()
    strategy = strategy_of(tmp_path, office)
    result = strategy.start(fed.grid(), start(), num_rounds=2)
    store = strategy.store
    assert states(store) == [("committed", None)]
    assert [o.request["classes"] for o in store.operations.all()] == [[3]]
    (outcome,) = strategy.results
    assert outcome.committed
    assert outcome.document is not None
    assert (outcome.document.id, outcome.document.deadline_met) == (document.id, True)
    assert store.umig.last_round() == 2
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    assert store.inbox.waiting() == []
    check_sound(strategy)
    assert verify_store(store).problems == ()


def test_a_run_that_does_not_go_on_leaves_its_document_to_the_next(
    tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupted request is given up with its run, the document is not."""

    def work() -> None:
        after_phase("calibrated")(monkeypatch)
        network = arriving({fed.CLIENTS + 2: [office.document(THREE).to_bytes()]}, tmp_path)
        strategy_of(tmp_path, office).start(network, start(), num_rounds=2)

    assert killed(work)
    monkeypatch.undo()
    strategy = strategy_of(tmp_path, office)
    strategy.start(fed.grid(), start(), num_rounds=1)
    assert states(strategy.store) == [("committed", None)]
    assert [strategy.store.runs.requests.row(i).phase for i in (1, 2)] == ["failed", "done"]
    check_sound(strategy)


def test_a_direct_request_is_not_taken_for_a_documents(
    tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = strategy_of(tmp_path, office)
    result = strategy.start(fed.grid(), start(), num_rounds=1)
    strategy.store.close()
    Inbox(tmp_path).add(office.document(THREE).to_bytes())

    def work() -> None:
        after_phase("calibrated")(monkeypatch)
        strategy_of(tmp_path, office).start(fed.grid(), start(), num_rounds=0)

    assert killed(work)
    monkeypatch.undo()
    strategy = strategy_of(tmp_path, office)
    outcome = strategy.forget(fed.grid(), THREE, result.arrays)
    assert outcome.committed
    assert outcome.document is None
    assert strategy.store.runs.requests.row(2).position is None
    (status,) = statuses(strategy.store)
    assert (status.state, status.phase) == ("serving", "calibrated")


def test_the_report_shows_who_asked_and_who_was_refused(tmp_path: Path, office: Office) -> None:
    strategy = strategy_of(tmp_path / "run", office)
    network = fed.grid()
    strategy.start(network, start(), num_rounds=1)
    document = office.document(THREE, deadline=soon())
    for asked in (document, office.document(THREE, "hospital")):
        strategy.store.inbox.add(asked.to_bytes())
    strategy.start(network, start(), num_rounds=0)
    loaders = [batch for p in range(fed.CLIENTS) for batch in fed.loader(p)]
    scores = score_checkpoints(strategy.store, fed.build_model(), loaders)
    report = build_report(strategy.results[0], strategy.store, before=scores, after=scores)
    paths = write_report(report, tmp_path / "report")
    text = paths["report.md"].read_text()
    assert f"Asked by operator in document {document.id}" in text
    assert "(met)" in text
    assert "| hospital |" in text
    assert "| not-allowed |" in text
    assert UnlearnReport.from_json(json.loads(paths["report.json"].read_text())) == report


def test_the_certificate_tells_who_asked(tmp_path: Path, office: Office) -> None:
    key = office.folder / "audit.pem"
    SigningKey.generate(key)
    with RunStore(tmp_path, signing_key=key) as store:
        strategy = UnlearningStrategy(fed.fedavg(), store=store, policy=office.policy)
        store.inbox.add(office.document(THREE).to_bytes())
        network = fed.grid()
        strategy.start(network, start(), num_rounds=1)
        store.inbox.add(office.document(THREE).to_bytes())
        strategy.start(network, start(), num_rounds=0)
        number = store.runs.requests.row(2).id
        certificate = export_certificate(store, str(number))
        found = check_certificate(certificate, PublicKey.load(f"{key}.pub"), store)
    assert found.ok, found.problems
    assert found.requester == "operator"
    told = [e["body"] for e in certificate["entries"] if e["kind"] == "document"]
    assert [(e["state"], e.get("request")) for e in told] == [("accepted", None), ("committed", number)]


@pytest.mark.parametrize(
    ("limit", "state"), [("", "committed"), ("budget = 0.001\n", "refused-by-calibration")]
)
def test_the_budget_of_whoever_signed_counts(
    limit: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "cost_of", lambda candidate: 0.02)  # blobs lie too far apart to cost
    office = Office(tmp_path / "office")
    text = office.path.read_text().replace('name = "operator"\n', f'name = "operator"\n{limit}')
    office.path.write_text(text)
    strategy = strategy_of(tmp_path / "run", office)
    strategy.start(fed.grid(), start(), num_rounds=2)
    strategy.store.inbox.add(office.document(THREE).to_bytes())
    strategy.start(fed.grid(), start(), num_rounds=0)
    (result,) = strategy.results
    assert result.document is not None
    assert result.document.state == state, result.message
    assert ("of retained accuracy" in result.message) == bool(limit)
