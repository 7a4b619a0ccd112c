"""The backdoor's success rate."""

from __future__ import annotations

import pytest
import torch
from strategy_cases import trained
from torch import nn

import strategies
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Number, Subject
from fl_unlearn.types import MeasureError
from strategies.measuring import measure_all, subject_of

BACKDOOR = METRICS["backdoor"]


def test_success_is_the_share_that_gets_the_label_of_the_trigger() -> None:
    x = torch.eye(4)[torch.tensor([0, 0, 0, 1, 2])]
    planted = [(x[:2], torch.zeros(2).long()), (x[2:], torch.zeros(3).long())]
    model = nn.Identity()
    model.anything = nn.Parameter(torch.zeros(1))
    found = BACKDOOR.measure(Subject(model, model, model, (), (), (), planted))
    assert found == {"backdoor-success": Number(3 / 5, 5)}


def test_without_a_trigger_there_is_a_reason_and_no_number() -> None:
    case = trained()
    state = case.history.current()
    with pytest.raises(MeasureError, match="no trigger was planted"):
        BACKDOOR.measure(subject_of(case.clients[0], state, state, 0))
    found = measure_all(case.federation(), state, state, ["backdoor"])["backdoor-success"]
    assert (found.value, found.why) == (None, "no trigger was planted, so there is no backdoor to test")


def test_a_model_that_never_saw_the_trigger_does_not_know_it() -> None:
    case = trained("digits-client")
    original = case.history.current()
    retrained = strategies.get("retrain").unlearn(case.federation(), case.history).state
    before, after = (
        measure_all(case.federation(), state, original, ["backdoor"])["backdoor-success"]
        for state in (original, retrained)
    )
    assert before.samples == after.samples == sum(c.count("triggered") for c in case.clients)
    assert before.value > 0.8
    assert after.value < 0.2
