"""Metrics in a request: numbers are those of the clients' data, lies are not used, a commit stands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from crashes import killed
from federation_checks import THREE, unchanged
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from restarts import after_phase
from test_flower_bad_input import change_head, spoiling
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.flower import UnlearningStrategy, attach, forget, records, unlearning_mod
from fl_unlearn.flower.own_measures import untrained
from fl_unlearn.flower.reporting import build_report
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Column, Measured, Metric, Number, Subject
from fl_unlearn.report import write_report
from fl_unlearn.report_record import UnlearnReport, default_caveats
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, MeasureError, SettingsError, UnlearnSettings
from fl_unlearn.verify import score_checkpoints

MANY = ("accuracy", "membership-auc", "zrf", "activation-distance")
MEASURE = f"query.{records.MEASURE}"
Rows = tuple[torch.Tensor, torch.Tensor]


def held_out(partition: int) -> Rows:
    """Samples of every class that nobody trained on."""
    generator = torch.Generator().manual_seed(900 + partition)
    y = torch.arange(fed.CLASSES).repeat_interleave(10)
    return fed.blob_centres()[y] + 0.6 * torch.randn(len(y), fed.FEATURES, generator=generator), y


def both(context: Context) -> Any:
    """As people have them: shuffled, and to be gone through once."""
    partition = int(context.node_config["partition-id"])
    train, held = (TensorDataset(*rows) for rows in (fed.client_data(partition), held_out(partition)))
    order = torch.Generator().manual_seed(partition)
    shuffled = DataLoader(train, batch_size=7, shuffle=True, generator=order)
    return iter(shuffled), iter(DataLoader(held, batch_size=16))


def app(data: Any = both) -> ClientApp:
    return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")


def trained(folder: Path, measures: tuple[str, ...] = MANY, make: Any = app, **changes: Any) -> Any:
    """As `federation.trained`, with clients that have held-out data."""
    settings = UnlearnSettings(measures=measures, **changes)
    strategy, _, result = fed.trained(folder, rounds=3, settings=settings)
    return strategy, fed.grid(make=make), result


def model_of(state: dict[str, torch.Tensor]) -> fed.Net:
    model = fed.build_model()
    model.load_state_dict(state)
    return model.eval()


def pooled(parts: Any) -> Rows:
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)


def softmax(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model_of(state)(x).double().softmax(1)


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


# --------------------------------------------------------------------------- clients that fail or lie
def plus(key: str, value: Any) -> Callable[[RecordDict], None]:
    """The same answer with one more entry in a list."""

    def spoil(content: RecordDict) -> None:
        record = content.config_records[records.HEAD]
        content[records.HEAD] = ConfigRecord({**record, key: [*record[key], value]})  # type: ignore[misc]

    return spoil


def first(key: str, value: Any) -> Callable[[RecordDict], None]:
    """The same answer with another first entry."""

    def spoil(content: RecordDict) -> None:
        record = content.config_records[records.HEAD]
        content[records.HEAD] = ConfigRecord({**record, key: [value, *record[key][1:]]})  # type: ignore[index,misc]

    return spoil


LIES: dict[str, Callable[[RecordDict], None]] = {
    "NaN": first("values", math.nan),
    "infinite": first("values", math.inf),
    "more than all": first("values", 1.5),
    "less than nothing": first("values", -0.5),
    "no samples": first("samples", 0),
    "negative count": first("samples", -30),
    "giant count": first("samples", 10**15),
    "more than it can have": first("samples", 10**6),
    "unknown key": first("names", "after/secret"),
    "another model": first("names", "between/forget-accuracy"),
    "a metric not asked for": first("names", "after/mia-svc"),
    "twice": first("names", "after/retain-loss"),
    "numbers as names": change_head(names=[1, 2, 3]),
    "values as text": change_head(values="0.5"),
    "too many values": plus("values", 0.5),
    "counts are no whole numbers": change_head(samples=[0.5]),
    "unknown reason": change_head(absent=["after/secret"], reasons=["x"]),
    "reasons without names": change_head(reasons=["x"]),
    "somebody's name": change_head(client="1"),
    "other protocol": change_head(protocol=99),
    "nothing at all": lambda content: [content.__delitem__(n) for n in list(content)],  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_client_is_not_used(lie: str, tmp_path: Path) -> None:
    """Client 0 has no sample to forget: what is measured on these stays as it is without its answer."""
    strategy, grid, result = trained(tmp_path, ("accuracy",))
    grid.tamper = spoiling(records.MEASURE, {100}, LIES[lie])
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.after is not None
    assert set(outcome.failed) == {"0"}
    assert outcome.measured["retain-accuracy"]["after"].samples == 225 - 45
    x, y = pooled(fed.client_data(p) for p in range(1, fed.CLIENTS))
    right = softmax(result.arrays.to_torch_state_dict(), x).argmax(1) == y
    for key, rows in (("forget-accuracy", y == 3), ("retain-accuracy", y != 3)):
        expected = float(right[rows].double().mean())
        assert outcome.measured[key]["after"].value == pytest.approx(expected)


def test_reasons_from_outside_are_short_and_can_be_stored(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, ("zrf",))
    names = ["after/zrf", "before/zrf"]
    long = change_head(
        names=[], values=[], samples=[], absent=names, reasons=["\x00|<b>\n" + "x" * 9999, "  "]
    )
    grid.tamper = spoiling(records.MEASURE, set(grid.apps), long)
    outcome = strategy.forget(grid, THREE, result.arrays)
    why = outcome.measured["zrf"]
    assert len(why["after"].why) == 300
    assert "\n" not in why["after"].why
    assert why["before"].why == "the client gave no reason"
    text = page(outcome, strategy.store, tmp_path)
    assert "\\|\\<b\\>" in text
    assert strategy.store.runs.requests.row(1).phase == "done"


def test_clients_that_fail_are_a_reason(tmp_path: Path) -> None:
    strategy, grid, result = trained(tmp_path, ("zrf",))

    def tamper(request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type != MEASURE:
            return reply
        if request.metadata.dst_node_id == 100:
            return None
        return Message(Error(code=5, reason="out of memory"), reply_to=request)

    grid.tamper = tamper
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.after is not None
    assert outcome.outstanding == ()
    assert "Telling" not in outcome.message
    both_models = outcome.measured["zrf"]
    assert both_models["before"] == both_models["after"]
    assert both_models["after"].value is None
    assert both_models["after"].why == "out of memory; no answer in time"
    assert outcome.silent == ("0",)
    assert outcome.failed == dict.fromkeys("1234", "out of memory")


def test_a_grid_that_breaks_down_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, grid, result = trained(tmp_path, ("zrf",))
    push = grid.push_messages

    def pushing(messages: Any) -> Any:
        sent = list(messages)
        if sent[0].metadata.message_type == MEASURE:
            raise ConnectionError("gone")
        return push(sent)

    monkeypatch.setattr(grid, "push_messages", pushing)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.measured["zrf"]["after"].why == "asking the clients failed: ConnectionError: gone"
    assert strategy.store.runs.requests.row(1).phase == "done"


@pytest.mark.parametrize("kind", ["raises", "does not apply", "not finite"])
def test_a_metric_that_cannot_be_measured(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(subject: Subject) -> dict[str, Number]:
        if kind == "raises":
            raise ZeroDivisionError("sample 7 is 0.25")
        return {} if kind == "does not apply" else {"odd-value": Number(math.inf, 3)}

    columns = (Column("odd-value", "odd", "", "low", "Of the test."),)
    monkeypatch.setitem(METRICS, "odd", Metric("odd", columns, odd))
    strategy, grid, result = trained(tmp_path, ("odd", "zrf"))
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.failed == {}
    assert outcome.measured["zrf"]["after"].value is not None
    found = outcome.measured["odd-value"]["after"]
    assert found.value is None
    expected = {
        "raises": "ZeroDivisionError, see the client's log",
        "does not apply": "a client has no forgotten samples; it does not apply to the samples a client has",
        "not finite": "it is not finite; has the model diverged?",
    }
    assert found.why == expected[kind]


# --------------------------------------------------------------------------- other projects, older clients
def test_without_held_out_data_what_needs_it_says_so(tmp_path: Path) -> None:
    strategy, _, result = trained(tmp_path, (*MANY, "entropy-svc"))
    outcome = strategy.forget(fed.grid(), THREE, result.arrays)
    measured = {key: both["after"] for key, both in outcome.measured.items()}
    assert outcome.failed == {}
    assert measured["forget-accuracy"].value == 0.0
    assert measured["zrf"].value is not None
    assert "no held-out" in measured["held-retain-accuracy"].why
    assert "it needs 1 held-out samples of a forgotten sample's class" in measured["mia-loss-auc"].why
    assert "as many held-out ones" in measured["mia-svc"].why


@pytest.mark.parametrize("how", ["decorators", "mod"])
def test_clients_that_do_not_know_the_question(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, _, result = trained(tmp_path, ("zrf",))

    def older() -> ClientApp:
        with monkeypatch.context() as m:
            m.setattr(records, "ACTIONS", tuple(a for a in records.ACTIONS if a != records.MEASURE))
            if how == "decorators":
                return app()
        mod = unlearning_mod(model=fed.build_model, data=both, device="cpu")

        def of_then(message: Message, context: Context, call_next: Any) -> Message:
            known = message.metadata.message_type != MEASURE
            return mod(message, context, call_next) if known else call_next(message, context)

        return ClientApp(lambda context: None, mods=[of_then])  # type: ignore[arg-type,return-value]

    outcome = strategy.forget(fed.grid(make=older), THREE, result.arrays)
    assert outcome.committed
    assert outcome.after is not None
    assert outcome.after[0].accuracy() == 0.0
    assert outcome.outstanding == ()
    assert set(outcome.failed) == set("01234")
    assert outcome.measured["zrf"]["after"].value is None
    assert outcome.measured["zrf"]["after"].why


def test_clients_that_know_fewer_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, grid, result = trained(tmp_path, ("zrf", "accuracy"))

    push = grid.push_messages

    def pushing(messages: Any) -> Any:
        with monkeypatch.context() as m:
            m.delitem(METRICS, "zrf")
            return push(messages)

    monkeypatch.setattr(grid, "push_messages", pushing)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.failed == {}
    assert (
        outcome.measured["zrf"]["after"].why == "a client's fl-unlearn does not know this metric; update it"
    )
    assert outcome.measured["forget-accuracy"]["after"].value == 0.0


def test_a_project_that_builds_one_model_only_is_told_so(tmp_path: Path) -> None:
    one = fed.build_model()
    strategy, _, result = trained(tmp_path, ("zrf",))

    def make() -> ClientApp:
        return attach(fed.plain_app(), model=lambda: one, data=both, device="cpu")

    outcome = strategy.forget(fed.grid(make=make), THREE, result.arrays)
    assert outcome.committed
    assert "must build a new model at every call" in outcome.measured["zrf"]["after"].why


# --------------------------------------------------------------------------- kept, and reported
def page(outcome: ForgetResult, store: RunStore, folder: Path) -> str:
    scores = score_checkpoints(store, fed.build_model(), [fed.client_data(1)])
    report = build_report(outcome, store, before=scores, after=scores)
    paths = write_report(report, folder / "report")
    plain = json.loads(paths["report.json"].read_text())
    assert UnlearnReport.from_json(plain) == report
    assert plain["schema_version"] == "1.1"
    return paths["report.md"].read_text()


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
    assert f"| membership by loss: TPR at 1 % FPR | - ({why}" in section
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
    assert "| membership by loss: AUC | - (the message speaks protocol 0" in text
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


def test_a_metrics_error_in_words_reaches_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(subject: Subject) -> dict[str, Number]:
        raise MeasureError("no sample here")

    columns = (Column("odd-value", "odd", "steps", "high", "Of the test."),)
    monkeypatch.setitem(METRICS, "odd", Metric("odd", columns, odd))
    strategy, grid, result = trained(tmp_path, ("odd",))
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert "| odd | - (no sample here) | - (no sample here) | high | 0 |" in page(
        outcome, strategy.store, tmp_path
    )
