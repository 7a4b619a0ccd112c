"""Metrics in a request: numbers are those of the clients' data, lies are not used, a commit stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from crashes import killed
from federation_checks import THREE, unchanged
from federation_measures import MANY, MEASURE, app, held_out, page, pooled, softmax, trained
from flwr.app import ArrayRecord, Message, RecordDict
from restarts import after_phase
from test_flower_bad_input import change_head, spoiling

from fl_unlearn.flower import UnlearningStrategy, forget, records
from fl_unlearn.flower.own_measures import untrained
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Column, Measured, Metric, Number, Subject
from fl_unlearn.report_record import default_caveats
from fl_unlearn.types import ForgetRequest, SettingsError, UnlearnSettings


def auc(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Chance that a member's loss is the lower one, pair by pair."""
    lower = (inside[:, None] < outside[None]).double() + 0.5 * (inside[:, None] == outside[None]).double()
    return float(lower.mean())


def loss_auc(state: dict[str, torch.Tensor], partition: int) -> float:
    """At one client: its training samples of class 3 against its held-out ones."""
    losses = []
    for x, y in (fed.client_data(partition), held_out(partition)):
        p = softmax(state, x[y == 3])[:, 3]
        losses.append(-p.log())
    return auc(*losses)


# --------------------------------------------------------------------------- the numbers
def test_the_numbers_are_those_of_the_clients_data(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.failed == {}
    after = result.arrays.to_torch_state_dict()
    assert [kind for kind, node in grid.log if node == 100].count(MEASURE) == 1

    x, y = pooled(fed.client_data(p) for p in range(fed.CLIENTS))
    held_x, held_y = pooled(held_out(p) for p in range(fed.CLIENTS))
    states = {"before": before, "after": after}
    measured = outcome.measured
    assert list(measured) == [c.key for name in MANY for c in METRICS[name].columns]
    for when, state in states.items():
        right, held_right = (softmax(state, rows).argmax(1) for rows in (x, held_x))
        for key, expected, count in (
            ("forget-accuracy", (right == y)[y == 3], 30),
            ("retain-accuracy", (right == y)[y != 3], 225),
            ("held-forget-accuracy", (held_right == held_y)[held_y == 3], 50),
            ("held-retain-accuracy", (held_right == held_y)[held_y != 3], 150),
        ):
            assert measured[key][when].value == pytest.approx(float(expected.double().mean())), (key, when)
            assert measured[key][when].samples == count
        both_holders = [loss_auc(state, p) for p in fed.HOLDERS_OF_3]
        assert measured["mia-loss-auc"][when] == Measured(pytest.approx(sum(both_holders) / 2), 30)
        moved = (softmax(state, x[y == 3]) - softmax(before, x[y == 3])).norm(dim=1).mean()
        assert measured["activation-distance"][when].value == pytest.approx(float(moved), abs=1e-6)
    assert measured["forget-accuracy"]["after"].value == 0.0
    assert measured["activation-distance"]["after"].value > 0.1
    assert measured["zrf"]["after"].value != measured["zrf"]["before"].value


def seen_subjects(monkeypatch: pytest.MonkeyPatch, folder: Path, request: Any, **changes: Any) -> Any:
    """What a metric of the test's own is given, client by client, and the request's outcome."""
    seen: list[Subject] = []
    column = Column("odd-value", "odd", "", "low", "Of the test.")
    monkeypatch.setitem(
        METRICS, "odd", Metric("odd", (column,), lambda s: seen.append(s) or {"odd-value": Number(1.0, 1)})
    )
    strategy, grid, result = trained(folder, ("odd",), **changes)
    outcome = None
    for one in request:
        seen.clear()
        outcome = strategy.forget(grid, one, result.arrays)
        assert outcome.committed
    return seen, outcome


def labels(batches: Any) -> list[int]:
    return sorted(int(v) for _, y in batches for v in y)


def test_what_clients_measure_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, outcome = seen_subjects(monkeypatch, tmp_path, [THREE])
    assert len(seen) == 2 * fed.CLIENTS
    for i, (after, before) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        held = labels(after.held_out)
        assert labels(after.forget) == [3] * (15 if i in fed.HOLDERS_OF_3 else 0)
        assert labels(after.retained) == [c for c in (0, 1, 2) for _ in range(15)]
        assert held == [c for c in range(4) for _ in range(10)]
        assert (after.classes, after.triggered) == ((3,), ())
        assert labels(before.held_out) == held, "all models are measured on the same samples"
        assert after.original is before.model
        torch.testing.assert_close(after.model.state_dict(), outcome.state, rtol=0, atol=0)
        assert not any(m.training for m in (after.model, before.model, after.fresh))
        torch.testing.assert_close(after.fresh.state_dict(), fed.build_model().state_dict(), rtol=0, atol=0)


def test_named_clients_and_what_was_forgotten_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerance = {"max_retain_drop": 1.0, "forget_tolerance": 1.0}
    request = [ForgetRequest((0,)), ForgetRequest((3,), clients=("1",))]
    seen, _ = seen_subjects(monkeypatch, tmp_path, request, **tolerance)
    for i, subject in enumerate(seen[::2]):
        assert labels(subject.forget) == ([3] * 15 if i == 1 else [])
        assert set(labels(subject.retained)) == ({1, 2, 3} if i == 2 else {1, 2})
        assert set(labels(subject.held_out)) == {1, 2, 3}


def test_no_more_samples_than_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = seen_subjects(monkeypatch, tmp_path, [THREE], calibration_samples=4)
    subject = seen[2]
    sizes = [len(labels(part)) for part in (subject.forget, subject.retained, subject.held_out)]
    assert sizes == [4, 4, 8]
    assert subject.head is None


def test_metrics_are_told_which_layer_is_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = seen_subjects(monkeypatch, tmp_path, [THREE], head="head")
    assert {subject.head for subject in seen} == {"head"}


def test_an_untrained_model_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (untrained(fed.Net, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_nothing_is_asked_by_default(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.measured == {}
    assert MEASURE not in {kind for kind, _ in grid.log}
    assert UnlearnSettings.preset("deep").measures == ()


def test_a_refused_request_is_not_measured(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, threshold=1e6)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert (outcome.committed, outcome.measured) == (False, {})
    assert MEASURE not in {kind for kind, _ in grid.log}


def test_only_numbers_and_words_leave_a_client(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, (*MANY, "membership-tpr"))
    answers: list[RecordDict] = []

    def tamper(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == MEASURE:
            answers.append(reply.content)
        return reply

    grid.tamper = tamper
    strategy.forget(grid, THREE, result.arrays)
    known = {"protocol", "client", "seconds", "names", "values", "samples", "absent", "reasons", "otherwise"}
    for content in answers:
        assert [*content] == [records.HEAD]
        record = content.config_records[records.HEAD]
        assert set(record) == known
        assert len(record["names"]) <= 2 * 16  # type: ignore[arg-type]
    assert len(answers) == fed.CLIENTS


# --------------------------------------------------------------------------- bad settings
def test_unknown_metrics_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    match = "unknown metric 'membership-uac': the known ones are accuracy, .*; did you mean 'membership-auc'?"
    bad = UnlearnSettings(measures=("zrf", "membership-uac"))
    with pytest.raises(SettingsError, match=match):
        UnlearningStrategy(fed.fedavg(), store=tmp_path / "new", settings=bad)
    assert not (tmp_path / "new").exists()
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    strategy.settings = bad
    grid.log.clear()
    with unchanged(strategy, result.arrays, SettingsError, match):
        strategy.forget(grid, THREE, result.arrays)
    with unchanged(strategy, result.arrays, SettingsError, match):
        forget(grid, THREE, strategy.store, settings=bad)
    assert grid.log == []
    with pytest.raises(SettingsError, match="a tuple of names, got the text 'zrf'"):
        UnlearnSettings(measures="zrf")  # type: ignore[arg-type]


# --------------------------------------------------------------------------- kept, and reported
def test_the_report_shows_it(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, ("membership-auc", "membership-tpr", "entropy-svc"))
    outcome = strategy.forget(grid, THREE, result.arrays)
    text = page(outcome, strategy.store, tmp_path)
    section = text.split("## What else was measured")[1].split("\n## ")[0]
    found = outcome.measured["mia-loss-auc"]
    row = f"| membership by loss: AUC | {found['before'].value:.3f} | {found['after'].value:.3f} | "
    assert row + "as a model retrained without the data | 30 |" in section
    why = outcome.measured["mia-loss-tpr"]["after"].why
    assert "it needs 100 held-out samples" in why
    assert "| membership by loss: TPR at 1 % FPR | - | - | " in section
    assert f"held-out ones of a class are. Not measured before and after: {why}." in section
    svc = outcome.measured["mia-svc"]["after"].value
    assert f"{100 * svc:.1f} %" in section
    assert "none of these numbers proves" in section
    said, not_said = text.split("## What was not measured")
    assert "- membership by loss: AUC, by the clients on their own data" in said
    assert "TPR at 1 % FPR, by the clients" not in said
    assert "Membership inference was not measured" not in not_said
    assert "Feature probes were not measured" in not_said
    assert "Relearning was not measured" in not_said


def test_the_caveats_drop_exactly_what_was_measured() -> None:
    plain = default_caveats("head")
    assert default_caveats("head", (), ["zrf", "activation-distance", "probe-retain"]) == plain
    for i, key in enumerate(("mia-loss-auc", "probe-forget", "relearn-steps")):
        with_ = default_caveats("head", (), [key])
        assert [j for j, (a, b) in enumerate(zip(plain, with_, strict=True)) if a != b] == [i]
        assert not any(word in with_[i].lower() for word in ("erase", "gone", "removed", "proof"))
    membership = ("membership-auc", "membership-tpr", "entropy-svc")
    assert {c.key[:4] for name in membership for c in METRICS[name].columns} == {"mia-"}


def test_without_an_answer_the_caveats_stand(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, ("membership-auc",))
    grid.tamper = spoiling(records.MEASURE, set(grid.apps), change_head(protocol=0))
    outcome = strategy.forget(grid, THREE, result.arrays)
    text = page(outcome, strategy.store, tmp_path)
    assert "| membership by loss: AUC | - | - | " in text
    assert "Not measured before and after: the message speaks protocol 0" in text
    assert "Membership inference was not measured" in text


def test_it_is_in_the_audit_log(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, ("zrf",))
    outcome = strategy.forget(grid, THREE, result.arrays)
    (entry,) = [e for e in strategy.store.audit.entries() if e.kind == "verified"]
    assert entry.body["measures"]["zrf"]["after"] == {
        "value": outcome.measured["zrf"]["after"].value,
        "samples": 30,
        "why": "",
    }


@pytest.mark.parametrize("phase", ["calibrated", "committed", "told", "done"])
def test_a_request_whose_server_died_keeps_it(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = UnlearnSettings(measures=MANY)

    def run(folder: Path) -> ForgetResult:
        strategy = UnlearningStrategy(fed.fedavg(), store=folder, settings=settings, deterministic=True)
        strategy.submit(THREE)
        strategy.start(fed.grid(make=app), ArrayRecord(fed.build_model().state_dict()), num_rounds=3)
        (result,) = strategy.results
        strategy.store.close()
        return result

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as m:
        after_phase(phase)(m)
        assert killed(lambda: run(tmp_path / "run"))
    again = run(tmp_path / "run")
    kept = phase in ("calibrated", "done")
    for key, found in whole.measured.items():
        if kept:
            assert again.measured[key] == approximately(found)
        elif key != "activation-distance":
            assert again.measured[key]["after"] == approximately(found)["after"]
            assert "was not kept when the server was restarted" in again.measured[key]["before"].why
    if not kept:
        needs_it = again.measured["activation-distance"]["after"]
        assert (needs_it.value, "not kept" in needs_it.why) == (None, True)


def approximately(found: dict[str, Measured]) -> dict[str, Measured]:
    """Loaders shuffle: sums may differ in the last digits."""
    return {when: Measured(pytest.approx(m.value), m.samples, m.why) for when, m in found.items()}


def test_requests_of_older_versions_are_read(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    strategy.forget(grid, THREE, result.arrays)
    row = strategy.store.runs.requests.row(1)
    del row.facts["measured"]
    assert strategy._recall(row).measured == {}
