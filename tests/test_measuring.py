"""Measuring at clients, averaging at the server."""

from __future__ import annotations

import math

import pytest
import torch
from strategy_cases import trained

import strategies
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Column, Metric, Number
from fl_unlearn.types import MeasureError
from strategies import tasks
from strategies.errors import StrategyError
from strategies.measuring import measure_all


def measured(case, state=None, metrics=("accuracy",)):
    original = case.history.current()
    return measure_all(case.federation(), original if state is None else state, original, metrics)


@pytest.fixture
def odd(monkeypatch):
    """A metric of the test's own: ``odd(function)`` puts it into the registry."""

    def add(function):
        metric = Metric("odd", (Column("odd-value", "odd", "", "low", "Of the test."),), function)
        monkeypatch.setitem(METRICS, "odd", metric)

    return add


def test_the_servers_numbers_are_those_over_all_samples_together() -> None:
    case = trained()
    masked = strategies.get("mask").unlearn(case.federation(), case.history).state
    for state in (case.history.current(), masked):
        found = measured(case, state)
        for key, part in (("forget-accuracy", "forget"), ("retain-accuracy", "retained")):
            assert found[key].value == pytest.approx(case.accuracy(state, part))
            assert found[key].samples == sum(c.count(part) for c in case.clients)
        assert found["class-3"].value == pytest.approx(case.accuracy(state, "held-out", (3,)))
    assert found["forget-accuracy"].value == 0


def test_a_client_answers_with_numbers_of_samples_and_nothing_else() -> None:
    case = trained()
    state = case.history.current()
    answer = tasks.run(
        "measure", case.clients[0], {"model": state, "original": state}, {"seed": 0, "metrics": ["accuracy"]}
    )
    assert not answer.tensors
    assert answer.numbers["accuracy/forget-accuracy#n"] == case.clients[0].count("forget")
    assert all(math.isfinite(v) for v in answer.numbers.values())
    assert answer.numbers.keys() == {k.removesuffix("#n") + end for k in answer.numbers for end in ("", "#n")}


def test_the_clients_measure_what_they_were_asked_about(odd) -> None:
    case, seen = trained("digits-client"), []
    odd(lambda subject: seen.append(subject) or {"odd-value": Number(1.0, 1)})
    state = case.history.current()
    measure_all(case.federation(), case.history.initial(), state, ["odd"], seed=7)
    first = seen[0]
    torch.testing.assert_close(first.original.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(first.model.state_dict(), case.history.initial(), rtol=0, atol=0)
    expected = case.clients[0].fresh(7).state_dict()
    torch.testing.assert_close(first.fresh.state_dict(), expected, rtol=0, atol=0)
    assert (first.classes, first.seed) == ((), 7)
    for subject, client in zip(seen, case.clients, strict=True):
        for part in ("forget", "retained", "held-out", "triggered"):
            batches = getattr(subject, part.replace("-", "_"))
            assert sum(len(y) for _, y in batches) == client.count(part)


def test_why_something_could_not_be_measured_reaches_the_server(odd) -> None:
    def refuse(subject):
        raise MeasureError("no sample here")

    odd(refuse)
    found = measured(trained(), metrics=["odd"])["odd-value"]
    assert (found.value, found.samples, found.why) == (None, 0, "no sample here")


def test_a_value_that_is_not_finite_at_one_client_is_no_value(odd) -> None:
    case = trained()
    broken = iter([1.0, math.nan, 1.0])
    odd(lambda subject: {"odd-value": Number(next(broken), 5)})
    found = measured(case, metrics=["odd"])["odd-value"]
    assert found.value is None
    assert "not finite" in found.why


def test_clients_weigh_by_what_they_measured_on(odd) -> None:
    case = trained()
    answers = iter([{"odd-value": Number(1.0, 1)}, {"odd-value": Number(0.0, 3)}, {"own": Number(0.5, 2)}])
    odd(lambda subject: next(answers))
    found = measured(case, metrics=["odd"])
    assert (found["odd-value"].value, found["odd-value"].samples) == (0.25, 4)
    assert found["own"].value == 0.5
    assert list(found) == ["odd-value", "own"]


def test_an_unknown_metric_is_named_before_any_client_is_asked() -> None:
    federation = trained().federation()
    state = trained().history.current()
    with pytest.raises(StrategyError, match="did you mean 'accuracy'"):
        measure_all(federation, state, state, ["acuracy"])
    assert federation.cost.rounds == 0


def test_all_metrics_are_measured_where_none_is_named() -> None:
    case = trained()
    found = measured(case, metrics=None)
    assert {c.key for m in METRICS.values() for c in m.columns} <= found.keys()
