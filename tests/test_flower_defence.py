"""Clients that lie, in whole requests: what the server makes of it; nothing changes before a commit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from federation_checks import THREE, files, unchanged
from flwr.app import ArrayRecord, Message, RecordDict
from restarts import after_phase, killed

from fl_unlearn import request_log
from fl_unlearn.budget import spent
from fl_unlearn.calibration import Candidate
from fl_unlearn.defence import OFF, Defence
from fl_unlearn.flower import records
from fl_unlearn.flower.double_check import contradictions
from fl_unlearn.flower.progress import Progress, _alike
from fl_unlearn.flower.session import forget
from fl_unlearn.privacy import Privacy
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    ClassScores,
    ForgetRequest,
    NotEnoughAnswersError,
    SettingsError,
    UnlearnSettings,
    UpdateError,
)

Lie = Callable[[RecordDict, RecordDict], None]


def lying(lies: dict[str, Lie], liars: set[int]) -> fed.Tamper:
    """``lies[action](question, reply)`` changes the replies of some nodes."""

    def tamper(question: Message, reply: Message) -> Message:
        lie = lies.get(question.metadata.message_type.removeprefix("query."))
        if lie is not None and question.metadata.dst_node_id in liars:
            lie(question.content, reply.content)
        return reply

    return tamper


def fisher_times(group: int, factor: float) -> Lie:
    def lie(question: RecordDict, reply: RecordDict) -> None:
        state = records.to_state(reply.array_records[records.FISHER_ARRAYS])
        state = {k: t * factor if k.startswith(f"{group}/") else t for k, t in state.items()}
        reply.array_records[records.FISHER_ARRAYS] = records.to_arrays(state)

    return lie


def scores_say(correct: Callable[[int, int], int]) -> Lie:
    """Of each class ``correct(label, samples)``, under every candidate and in the verification."""

    def lie(question: RecordDict, reply: RecordDict) -> None:
        record = reply.config_records[records.HEAD]
        labels, total = records.ints(record, "labels"), records.ints(record, "total")
        candidates = 1 + len(records.list_of(question.config_records[records.HEAD], "thresholds"))
        told = records.ints(record, "correct")
        for i in range(len(told) // len(labels)):
            if candidates == 1 or i % candidates:
                said = [correct(c, n) for c, n in zip(labels, total, strict=True)]
                told[i * len(labels) : (i + 1) * len(labels)] = said
        record["correct"] = told

    return lie


LOST = scores_say(lambda label, n: n if label == 3 else 0)
FINE = scores_say(lambda label, n: 0 if label == 3 else n)
HARMED = scores_say(lambda label, n: 0 if label == 3 else round(0.93 * n))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("trained")
    fed.trained(folder, rounds=3)[0].store.close()
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Any:
    shutil.copytree(trained, tmp_path / "store")
    with RunStore(tmp_path / "store") as opened:
        yield opened


def serve(
    store: RunStore, lies: dict[str, Lie] | None = None, liars: set[int] | None = None, **kw: Any
) -> Any:
    settings = UnlearnSettings(**{"calibration_models": 1, **kw.pop("settings", {})})
    tamper = lying(lies or {}, liars or set())
    return forget(fed.grid(tamper), kw.pop("request", THREE), store, settings=settings, **kw)


def test_an_honest_request_is_served_as_without_defence(trained: Path, tmp_path: Path) -> None:
    results = []
    for name, defence in (("on", Defence()), ("off", OFF)):
        shutil.copytree(trained, tmp_path / name)
        with RunStore(tmp_path / name) as opened:
            results.append(serve(opened, settings={"defence": defence}))
    on, off = results
    assert on.committed
    assert on.update.digest == off.update.digest
    assert (on.failed, on.contradictions) == ({}, ())
    assert [c.cost for c in on.candidates] == [c.cost for c in off.candidates]
    assert [c.passed for c in on.candidates] == [c.passed for c in off.candidates]


def test_a_made_up_fisher_is_left_out(store: RunStore) -> None:
    result = serve(store, {records.FISHER: fisher_times(3, 1000.0)}, {101})
    assert result.committed
    assert "no data has such a Fisher" in result.failed["1"]
    assert set(result.holders) == {"2"}
    assert {"1", "2"} <= {store.clients()[store.umig.node(r).owner or ""] for r in result.roots}


def test_with_too_few_left_nothing_is_changed(trained: Path, store: RunStore) -> None:
    before = files(store)
    with pytest.raises(
        NotEnoughAnswersError, match="4 of 5 clients gave a usable answer to the Fisher phase"
    ):
        serve(store, {records.FISHER: fisher_times(3, 9.0)}, {101}, settings={"min_answers": 1.0})
    assert files(store) == before


def test_one_client_cannot_block(store: RunStore) -> None:
    lies = {records.SCORE: LOST}
    result = serve(store, lies, {100})
    assert result.committed
    assert "disputed by 0" in result.message
    assert fed.accuracy(result.state, 3) <= 0.04
    assert min(fed.accuracy(result.state, c) for c in range(3)) > 0.9


def test_one_client_alone_blocks_without_defence(store: RunStore) -> None:
    before = files(store)
    result = serve(store, {records.SCORE: LOST}, {100}, settings={"defence": OFF})
    assert not result.committed
    assert files(store) == before
    assert store.operations.all() == []


def invented(question: RecordDict, reply: RecordDict) -> None:
    """All of its samples are of a class that nobody else holds, and lost under every candidate."""
    record = reply.config_records[records.HEAD]
    samples, rows = sum(records.ints(record, "total")), len(records.ints(record, "correct"))
    rows //= len(records.ints(record, "labels"))
    candidates = 1 + len(records.list_of(question.config_records[records.HEAD], "thresholds"))
    record["labels"], record["total"], record["loss"] = [9], [samples], [0.0] * rows
    record["correct"] = [0 if candidates == 1 or i % candidates else samples for i in range(rows)]


def test_whom_the_operator_distrusts_is_left_out(store: RunStore) -> None:
    before, lies = files(store), dict.fromkeys((records.SCORE, records.MEASURE), invented)
    refused = serve(store, lies, {100})
    assert not refused.committed
    assert "Without the word of client 0 one would have passed" in refused.message
    assert "Defence(distrusted=('0',))" in refused.message
    assert files(store) == before
    result = serve(store, lies, {100}, settings={"defence": Defence(distrusted=("0",))})
    assert result.committed
    assert result.failed == {"0": "the settings distrust it (defence.distrusted)"}
    assert result.outstanding == (), "it gets the update as all others do"
    assert fed.accuracy(result.state, 3) <= 0.04


def test_another_name_does_not_help(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    def renamed(question: RecordDict, reply: RecordDict) -> None:
        reply.config_records[records.HEAD]["client"] = "99"

    assert serve(store, request=ForgetRequest((2,))).committed, "who the nodes are is known"
    lies = {action: renamed for action in (records.IDENTITY, records.FISHER, records.SCORE)}  # noqa: C420
    settings = {"defence": Defence(distrusted=("0", "client-7")), "min_answers": 1.0}
    result = serve(store, lies, {100}, settings=settings)
    assert result.committed
    assert "the settings distrust it" in next(iter(result.failed.values()))
    assert "names clients that are not there: ['client-7']" in caplog.text


def test_distrust_is_of_names() -> None:
    assert Defence(distrusted=["0", "3"]).distrusted == ("0", "3")  # type: ignore[arg-type]
    for wrong in ("07", (7,)):
        with pytest.raises(SettingsError, match="distrusted must be names of clients"):
            UnlearnSettings(defence=Defence(distrusted=wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("liars", [{100}, set()])
def test_a_harmful_update_is_refused_though_one_says_all_is_well(store: RunStore, liars: set[int]) -> None:
    """Four clients see that all candidates cost them too much; the fifth sees so too, or lies."""
    harmed, lies = (
        lying({records.SCORE: HARMED}, {100, 101, 102, 103, 104}),
        lying({records.SCORE: FINE}, liars),
    )
    grid = fed.grid(lambda question, reply: lies(question, harmed(question, reply)))  # type: ignore[arg-type]
    before, model = files(store), store.latest()[1].state
    result = forget(grid, THREE, store, settings=UnlearnSettings(calibration_models=1))
    assert not result.committed
    assert files(store) == before
    assert all(torch.equal(t, model[n]) for n, t in result.state.items())
    kinds = [e.kind for e in store.audit.entries()]
    assert kinds[-1] == "refused"
    assert "decided" not in kinds


def test_the_cap_holds_in_what_is_committed(store: RunStore) -> None:
    settings = {"threshold": 1.0, "force": True, "defence": Defence(row_share=0.1)}
    result = serve(store, settings=settings)
    entry = result.update.entries["head.weight"]
    rows = entry.indices.long() // 24
    assert all(int((rows == c).sum()) <= 2 for c in range(3))
    assert int((rows == 3).sum()) > 2


# --------------------------------------------------------------------------- around the commit
def test_an_update_that_was_not_scored_is_not_committed(
    trained: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Progress.candidate

    def swap(self: Progress) -> Any:  # as if the file in the store had been replaced after it was scored
        self.scored_update = "0" * 64
        return plain(self)

    serve_calibrated(store, monkeypatch)
    monkeypatch.setattr(Progress, "candidate", swap)
    with pytest.raises(UpdateError, match="is not the one that the clients scored"):
        serve(store)
    assert store.operations.all() == []


def serve_calibrated(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a request until it is calibrated; the server dies then."""
    with monkeypatch.context() as patch:
        patch.setattr("fl_unlearn.flower.session.check_commit", dies)
        with pytest.raises(KeyboardInterrupt):
            serve(store)
    assert store.runs.requests.interrupted()[0].phase == request_log.CALIBRATED


def dies(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_update_above_the_caps_is_not_committed(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_unlearn.flower.search.capped", lambda update, *_: update)
    settings = {"threshold": 1.0, "force": True, "defence": Defence(row_share=0.05)}
    with pytest.raises(UpdateError, match=r"selects more of 'head\.weight' than the caps allow"):
        serve(store, settings=settings)
    assert store.operations.all() == []


def test_what_the_verification_contradicts_is_said_and_recorded(store: RunStore) -> None:
    late = scores_say(lambda label, n: n if label == 3 else 0)

    def after_commit(question: RecordDict, reply: RecordDict) -> None:
        if not records.list_of(question.config_records[records.HEAD], "thresholds"):
            late(question, reply)

    result = serve(store, {records.SCORE: after_commit}, {101})
    assert result.committed
    assert any("client 1 said" in what for what in result.contradictions)
    assert "verification contradicts" in result.message
    entry = next(e for e in store.audit.entries() if e.kind == "contradicted")
    assert entry.body["what"] == list(result.contradictions)


def test_a_client_that_leaves_is_no_contradiction(store: RunStore) -> None:
    def after_commit(question: Message, reply: Message) -> Message | None:
        if question.metadata.message_type != f"query.{records.SCORE}" or question.metadata.dst_node_id != 100:
            return reply
        if not records.list_of(question.content.config_records[records.HEAD], "thresholds"):
            return None
        scores_say(lambda label, n: 0)(question.content, reply.content)  # its data is unlike all others'
        return reply

    result = forget(fed.grid(after_commit), ForgetRequest((3,)), store)
    assert result.committed
    assert result.after is not None
    now = result.after[1].accuracy()
    assert now is not None
    assert now > max(c.retain_accuracy for c in result.candidates) + 0.15
    assert result.contradictions == ()


def killed_after_the_commit(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store whose server died when it had decided."""
    folder = store.folder
    store.close()

    def work() -> None:
        after_phase("committed")(monkeypatch)
        with RunStore(folder) as own:
            forget(fed.grid(), ForgetRequest((3,)), own)

    assert killed(work)
    monkeypatch.undo()
    return folder


def test_another_model_is_no_contradiction(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed_after_the_commit(store, monkeypatch)
    trained_on = ArrayRecord(fed.build_model().state_dict())
    with RunStore(folder) as own:
        result = forget(fed.grid(), ForgetRequest((3,)), own, current=trained_on)
    assert result.committed
    assert result.after is not None
    assert result.contradictions == ()


def test_lies_are_seen_through_after_a_crash(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed_after_the_commit(store, monkeypatch)
    with RunStore(folder) as own:
        result = serve(own, {records.SCORE: LOST}, {101})
    assert any("client 1 said" in what for what in result.contradictions)


def test_masked_sums_are_compared_among_the_same_clients() -> None:
    chosen = Candidate(1.0, 1.0, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, passed=True, everywhere=True)
    after = (ClassScores({3: 0}, {3: 30}, {3: 0.0}), ClassScores({-1: 200}, {-1: 200}, {-1: 0.0}))
    masked = UnlearnSettings(privacy=Privacy(masked=True))
    noisy = UnlearnSettings(privacy=Privacy(score_noise=1.0))
    assert len(contradictions(chosen, {}, after, {}, masked)) == 1
    assert contradictions(None, {}, after, {}, masked) == ()  # another client answered, or one less
    assert contradictions(chosen, {}, after, {}, noisy) == ()


def test_a_bound_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match="weight must be a finite number"):
        UnlearnSettings(defence=Defence(weight=float("inf")))


# --------------------------------------------------------------------------- budgets
def test_a_requester_spends_its_budget(store: RunStore) -> None:
    costly = {records.SCORE: scores_say(lambda label, n: 0 if label in (0, 3) else round(0.8 * n))}
    everybody, forced = {100, 101, 102, 103, 104}, {"threshold": 5.0, "force": True}
    asking: dict[str, Any] = {"settings": forced, "requester": "eager"}
    first = serve(store, costly, everybody, budget=1.0, **asking)
    assert first.committed
    cost = spent(store, "eager")
    assert cost == pytest.approx(first.candidates[0].retain_drop)
    assert cost > 0.1
    assert spent(store, "other") == 0.0
    before, zero = files(store), ForgetRequest((0,))
    second = serve(store, costly, everybody, request=zero, budget=1.2 * cost, **dict(asking))
    assert not second.committed
    assert "that the policy allows it" in second.message
    assert files(store) == before
    assert [e.kind for e in store.audit.entries()][-1] == "refused"
    assert spent(store, "eager") == cost
    assert serve(store, request=zero, **{**asking, "settings": dict(forced), "budget": 1.2 * cost}).committed


# --------------------------------------------------------------------------- hidden layers
def test_most_clients_decide_which_layers_there_are(store: RunStore) -> None:
    def other(question: RecordDict, reply: RecordDict) -> None:
        record = reply.config_records[records.HEAD]
        record["layers"] = ["another"]

    result = serve(store, {records.STATISTICS: other}, {100}, settings={"erase": "auto"})
    assert result.committed
    assert result.failed == {"0": "other layers to erase in than most clients'"}
    assert list(result.update.erasures) == ["hidden"]


def test_more_samples_than_asked_for_are_not_believed(store: RunStore) -> None:
    def more(question: RecordDict, reply: RecordDict) -> None:
        record = reply.config_records[records.HEAD]
        record["total"] = [11 for _ in records.ints(record, "total")]

    result = serve(store, {records.SCORE: more}, {100}, settings={"calibration_samples": 10})
    assert "where at most 10 were asked for" in result.failed["0"]
    assert result.committed


def test_a_malformed_answer_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    strategy, network, result = fed.trained(tmp_path / "run", rounds=2)
    strategy.settings = UnlearnSettings(min_answers=1.0, calibration_models=1)
    network.tamper = lying({records.FISHER: fisher_times(-1, -1.0)}, {100})
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, "usable answer to the Fisher phase"):
        strategy.forget(network, THREE, result.arrays)


def test_settings_of_an_older_version_are_the_defaults_of_this_one() -> None:
    then = json.loads(json.dumps(UnlearnSettings(timeout=7.0).to_json()))
    del then["defence"]["distrusted"], then["measures"]
    assert _alike(then, UnlearnSettings(timeout=7.0, min_clients=3))
    assert not _alike(then, UnlearnSettings(timeout=7.0, defence=Defence(distrusted=("1",))))
    assert not _alike(then, UnlearnSettings(timeout=8.0))
