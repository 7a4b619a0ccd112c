"""Relearning time at the clients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from strategy_cases import trained
from torch import nn

import strategies
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.relearning import BATCH, EVERY, LR, MOMENTUM, SAMPLES, SHARE, STEPS
from fl_unlearn.probes import relearning_curve
from fl_unlearn.types import MeasureError
from strategies.measuring import measure_all, subject_of

RELEARNING = METRICS["relearning"]


def subject(name: str = "digits-class", index: int = 0, state=None):
    case = trained(name)
    original = case.history.current()
    return subject_of(case.clients[index], original if state is None else state, original, 0)


def samples(part):
    batches = list(part)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def first_of_each(x, y):
    rows = torch.cat([(y == c).nonzero()[:SAMPLES, 0] for c in range(10)]).sort().values
    return x[rows], y[rows]


def steps_by_hand(s, model, mix, test) -> int:
    curve = relearning_curve(
        model, mix, [test], steps=range(STEPS + 1), lr=LR, momentum=MOMENTUM, batch=BATCH, seed=s.seed
    )
    wanted = SHARE * (s.original(test[0]).argmax(1) == test[1]).float().mean().item()
    return next((n for n in range(0, STEPS + 1, EVERY) if curve[n].accuracy() >= wanted), STEPS)


def test_a_class_is_relearned_from_a_fresh_row_and_seen_on_held_out_samples() -> None:
    s = subject(index=1)
    forget, retained = first_of_each(*samples(s.forget)), first_of_each(*samples(s.retained))
    mix = tuple(torch.cat(pair) for pair in zip(forget, retained, strict=True))
    x, y = samples(s.held_out)
    own, fresh = y == 3, subject(index=1).model
    with torch.no_grad():
        fresh.head.weight[3] = 0
        fresh.head.bias[3] = 0
    found = RELEARNING.measure(s)
    assert found["relearn-steps"].value == steps_by_hand(s, fresh, mix, (x[own], y[own])) > 0
    assert found["relearn-steps"].samples == found["relearn-capped"].samples == int(own.sum())
    assert found["relearn-capped"].value == 0


@pytest.mark.parametrize("name", ["digits-client", "digits-samples"])
def test_samples_are_relearned_by_heart(name: str) -> None:
    fresh = trained(name).clients[0].fresh(5).state_dict()
    s = subject(name, state=fresh)
    forget = first_of_each(*samples(s.forget))
    kept = [first_of_each(*samples(s.retained))] if name == "digits-samples" else []
    mix = tuple(torch.cat(pair) for pair in zip(forget, *kept, strict=True))
    found = RELEARNING.measure(s)
    assert found["relearn-steps"].value == steps_by_hand(s, s.model, mix, forget) > 0
    assert found["relearn-steps"].samples == len(forget[1])
    assert RELEARNING.measure(subject(name))["relearn-steps"].value == 0, "the original knows them"


def test_the_mask_is_as_fast_as_the_original_and_retraining_takes_longer() -> None:
    case = trained()
    original = case.history.current()
    states = {
        n: strategies.get(n).unlearn(case.federation(), case.history).state for n in ("mask", "retrain")
    }
    steps = {
        name: measure_all(case.federation(), state, original, ["relearning"])["relearn-steps"].value
        for name, state in {"original": original, **states}.items()
    }
    assert steps["mask"] == steps["original"]
    assert steps["retrain"] >= steps["original"] + 4


def test_a_planted_trigger_is_known_again_sooner_than_it_is_learned() -> None:
    case = trained("digits-client")
    original = case.history.current()
    retrained = strategies.get("retrain").unlearn(case.federation(), case.history).state
    before, after = (
        measure_all(case.federation(), state, original, ["relearning"])["relearn-steps"].value
        for state in (original, retrained)
    )
    assert before == 0
    assert after >= 4


def test_what_is_not_relearned_counts_as_the_cap_and_as_capped() -> None:
    s = subject()
    for parameter in s.model.parameters():
        nn.init.zeros_(parameter)  # nothing but the head's bias has a gradient
    found = RELEARNING.measure(s)
    assert found["relearn-steps"].value == STEPS
    assert found["relearn-capped"].value == 1


def test_without_something_to_relearn_there_is_a_reason() -> None:
    s = subject()
    (x, y), (a, b) = samples(s.held_out), samples(s.forget)
    for changed, says in [
        (replace(s, forget=()), "no sample to be forgotten"),
        (replace(s, forget=[(a[:9], b[:9])]), "at least 10 .* a client has 9"),
        (
            replace(s, held_out=[(x[y != 3], y[y != 3])]),
            "none of the forgotten samples right .* or there are none",
        ),
        (replace(s, model=nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1))), r"no nn\.Linear"),
        (replace(subject("digits-client", 1)), "no sample to be forgotten"),
    ]:
        with pytest.raises(MeasureError, match=says):
            RELEARNING.measure(changed)
