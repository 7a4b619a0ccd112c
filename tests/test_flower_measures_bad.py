"""Metrics in a request when clients lie, fail, are older or have less: a commit stands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
from federation_checks import THREE
from federation_measures import MANY, MEASURE, app, both, page, pooled, softmax, trained
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from test_flower_bad_input import change_head, spoiling

from fl_unlearn.flower import attach, measures, records, unlearning_mod
from fl_unlearn.flower.panel import Panel
from fl_unlearn.flower.reporting import build_report
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Column, Metric, Number, Subject
from fl_unlearn.types import AnswerError, MeasureError, UnlearnSettings
from fl_unlearn.verify import score_checkpoints


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
    assert outcome.failed == {}, "its Fisher sums and scores were used"
    assert outcome.measured["retain-accuracy"]["after"].samples == 225 - 45
    x, y = pooled(fed.client_data(p) for p in range(1, fed.CLIENTS))
    right = softmax(result.arrays.to_torch_state_dict(), x).argmax(1) == y
    for key, rows in (("forget-accuracy", y == 3), ("retain-accuracy", y != 3)):
        expected = float(right[rows].double().mean())
        assert outcome.measured[key]["after"].value == pytest.approx(expected)


OUT_OF_BOUNDS = [
    ("mia-loss-auc", -9e11),
    ("mia-loss-auc", 1.01),
    ("relearn-steps", 62.0),
    ("relearn-steps", -2.0),
    ("activation-distance", 1.42),
    ("zrf", 1.01),
    ("distance", -0.1),
    ("forget-loss", -0.1),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_BOUNDS)
def test_no_value_may_be_one_that_there_cannot_be(key: str, value: float) -> None:
    metric = next(m for m in METRICS.values() if key in {c.key for c in m.columns})
    column = next(c for c in metric.columns if c.key == key)
    for claim in (0.0, value, column.high):
        if claim is None:
            continue
        told = measures.write("0", measures.Answer({f"after/{key}": Number(claim, 5)}), 0.0)
        if claim == value:
            with pytest.raises(AnswerError, match=rf"'{key}' is {re.escape(str(value))}.* where 0 to "):
                measures.read(told, metrics=[metric], models=["after"])
        else:
            read = measures.read(told, metrics=[metric], models=["after"])
            assert read.numbers[f"after/{key}"] == Number(claim, 5)


def test_shares_have_a_bound() -> None:
    columns = [c for m in METRICS.values() for c in m.columns]
    assert {c.high for c in columns if c.unit == "%"} == {1.0}


def test_a_client_that_never_trained_may_not_outweigh_all_others() -> None:
    panel = Panel(None, THREE, UnlearnSettings(), {"0": 45, "1": 60})  # type: ignore[arg-type]
    panel.plausible("new", 20 * 60)
    with pytest.raises(AnswerError, match="where no known client trained on more than 60 in a round"):
        panel.plausible("new", 20 * 60 + 1)
    with pytest.raises(AnswerError, match="where this client trained on at most 45 in a round"):
        panel.plausible("0", 20 * 45 + 1)
    Panel(None, THREE, UnlearnSettings(), {}).plausible("new", 10**12)  # type: ignore[arg-type]


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
    assert both_models["after"].why == "out of memory (other clients give other reasons)"
    assert (outcome.silent, outcome.failed) == ((), {})
    scores = score_checkpoints(strategy.store, fed.build_model(), [fed.client_data(1)])
    report = build_report(outcome, strategy.store, before=scores, after=scores)
    assert report.clients.answered == outcome.asked == tuple("01234"), "all of them decided the update"


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
        "does not apply": "a client has no forgotten samples (other clients give other reasons)",
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
    assert outcome.failed == {}
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


def test_a_metrics_error_in_words_reaches_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(subject: Subject) -> dict[str, Number]:
        raise MeasureError("no sample here")

    columns = (Column("odd-value", "odd", "steps", "high", "Of the test."),)
    monkeypatch.setitem(METRICS, "odd", Metric("odd", columns, odd))
    strategy, grid, result = trained(tmp_path, ("odd",))
    outcome = strategy.forget(grid, THREE, result.arrays)
    text = page(outcome, strategy.store, tmp_path)
    assert "| odd | - | - | high | 0 |" in text
    assert "- odd: Of the test. Not measured before and after: no sample here." in text
