"""Every metric in the registry, on cases whose answer is known, and what all of them owe their caller.

A metric that is added is covered by all but `KNOWN`, to which it adds what it must give.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from strategy_cases import trained
from torch import nn

import strategies
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Number, Subject, combine, measure
from strategies.measuring import subject_of

SETTINGS = ("digits-class", "digits-client", "digits-samples")
PARTS = ("forget", "retained", "held_out", "triggered")
LN_10 = math.log(10)

NEEDS_NO_SAMPLES = {"distance"}
"""They compare parameters."""

HALF = pytest.approx(0.5, abs=1e-9)
ABOUT_HALF = pytest.approx(0.5, abs=0.2)
"""A client has a dozen held-out samples of the class: an area's standard deviation is then 0.09."""

KNOWN = {
    "the original itself": {
        "accuracy": {"forget-accuracy": pytest.approx(1.0, abs=0.05)},
        "distance": {"distance": 0.0, "distance-head.weight": 0.0, "distance-features.0.weight": 0.0},
        "activation-distance": {"activation-distance": 0.0},
        "relearning": {"relearn-capped": 0.0},
    },
    "a model that was never trained": {
        "zrf": {"zrf": pytest.approx(1.0, abs=1e-6)},
        "membership-auc": {"mia-loss-auc": ABOUT_HALF, "mia-entropy-auc": ABOUT_HALF},
    },
    "a model that never saw the class": {
        "accuracy": {"forget-accuracy": 0.0, "held-forget-accuracy": 0.0, "class-3": 0.0},
        "membership-auc": {"mia-loss-auc": ABOUT_HALF, "mia-entropy-auc": ABOUT_HALF},
    },
    "a model without its head": {
        "accuracy": {
            **{f"{p}-loss": pytest.approx(LN_10) for p in ("forget", "retain", "held-forget", "held-retain")},
            "forget-accuracy": 0.0,
            "class-3": 0.0,
            "class-0": 1.0,  # equal logits: the first class is taken
        },
        "distance": {"distance-head.weight": 1.0, "distance-fc.weight": 0.0},
        "membership-auc": {"mia-loss-auc": HALF, "mia-entropy-auc": HALF},
    },
}
"""Case to metric to key to value; for class 3 of digits."""


@lru_cache
def states(name: str = "digits-class") -> dict[str, dict[str, torch.Tensor]]:
    case = trained(name)
    original = case.history.current()
    return {
        "the original itself": original,
        "a model that was never trained": case.clients[0].fresh(0).state_dict(),
        "a model that never saw the class": strategies.get("retrain")
        .unlearn(case.federation(), case.history)
        .state,
        "a model without its head": {
            n: torch.zeros_like(t) if n.startswith("head.") else t for n, t in original.items()
        },
    }


def subject(name: str = "digits-class", model: str = "the original itself", client: int = 0) -> Subject:
    case = trained(name)
    state = case.history.current() if model == "the original itself" else states(name)[model]
    return subject_of(case.clients[client], state, case.history.current(), 0)


def numbers(metric: str, of: Subject) -> Mapping[str, Number]:
    found = measure(METRICS[metric], of)
    assert not isinstance(found, str), found
    return found


# --------------------------------------------------------------------------- known answers
@pytest.mark.parametrize(
    ("model", "metric"),
    [(model, metric) for model, by in KNOWN.items() for metric in by if metric in METRICS],
)
def test_known_answers(model: str, metric: str) -> None:
    found = numbers(metric, subject(model=model))
    wanted = KNOWN[model][metric]
    assert {key: found[key].value for key in wanted} == wanted


@pytest.mark.parametrize("metric", METRICS)
def test_identical_models_get_identical_numbers(metric: str) -> None:
    one = subject()
    other = replace(one, model=one.original, original=copy.deepcopy(one.original))
    assert measure(METRICS[metric], one) == measure(METRICS[metric], other)


def test_what_only_the_head_hides_is_in_probe_and_relearning_as_it_was() -> None:
    original, headless, retrained = (
        subject(model=m)
        for m in ("the original itself", "a model without its head", "a model that never saw the class")
    )
    assert numbers("probe", headless) == numbers("probe", original)
    steps = [numbers("relearning", s)["relearn-steps"].value for s in (original, retrained)]
    assert steps[0] < steps[1]


# --------------------------------------------------------------------------- what all of them owe
class Careful(nn.Module):
    """A model with everything that a metric could disturb: batch statistics, dropout, a frozen layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)
            )
            self.head = nn.Linear(16, 10)
        self.head.bias.data[3] += 0.5  # so that some samples of class 3 are right
        self.body[1].bias.requires_grad_(False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def snapshot(model: nn.Module) -> object:
    return (
        {n: t.clone() for n, t in model.state_dict().items()},
        {n: m.training for n, m in model.named_modules()},
        {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()},
        {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("metric", METRICS)
def test_models_and_random_states_are_left_as_they_were(metric: str, name: str) -> None:
    models = {kind: Careful(seed) for seed, kind in enumerate(("model", "original", "fresh"))}
    before = {kind: snapshot(m) for kind, m in models.items()}
    full = subject(name)
    # Lists of batches: a loader draws a seed for its workers each time, whoever goes through it.
    careful = replace(full, **models, **{part: list(getattr(full, part)) for part in PARTS})
    randomness = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with torch.enable_grad():
        measure(METRICS[metric], careful)
        assert torch.is_grad_enabled()
    for kind, model in models.items():
        (values, *rest), (was, *rest_was) = snapshot(model), before[kind]
        torch.testing.assert_close(values, was, rtol=0, atol=0)
        assert rest == rest_was, kind
    assert torch.equal(torch.get_rng_state(), randomness[0])
    assert random.getstate() == randomness[1]
    assert np.random.get_state()[1].tolist() == randomness[2]


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_subject_gives_the_same_numbers_whatever_was_drawn_before(metric: str) -> None:
    dropout = {kind: Careful(seed) for seed, kind in enumerate(("model", "original", "fresh"))}
    for s in (subject("digits-class", "a model that never saw the class"), replace(subject(), **dropout)):
        first = measure(METRICS[metric], s)
        torch.rand(3), random.random(), np.random.rand(3)
        assert measure(METRICS[metric], s) == first


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("metric", METRICS)
def test_numbers_are_finite_and_say_what_they_rest_on(metric: str, name: str) -> None:
    shares = {c.key for c in METRICS[metric].columns if c.unit == "%"}
    for client in (0, 1):
        found = measure(METRICS[metric], subject(name, "a model that never saw the class", client))
        if isinstance(found, str):
            assert found
            continue
        for key, number in found.items():
            assert math.isfinite(number.value), key
            assert number.samples > 0
            assert key not in shares or 0 <= number.value <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_without_any_sample_there_is_no_number(metric: str) -> None:
    found = measure(METRICS[metric], replace(subject(), **dict.fromkeys(PARTS, ())))
    if metric in NEEDS_NO_SAMPLES:
        assert found
    else:
        assert isinstance(found, str) or found == {}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("metric", METRICS)
def test_where_one_part_is_empty_each_column_has_a_number_or_a_reason(metric: str, part: str) -> None:
    answer = measure(METRICS[metric], replace(subject("digits-client"), **{part: ()}))
    if not isinstance(answer, str):
        assert all(math.isfinite(n.value) and n.samples > 0 for n in answer.values())
    for key, found in combine([answer], [c.key for c in METRICS[metric].columns]).items():
        assert (found.value is None) == bool(found.why), key


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("forget", "forget-"), ("retained", "retain-"), ("held_out", "held-"), ("triggered", "backdoor-")],
)
def test_what_is_measured_on_a_part_is_not_measured_without_it(part: str, prefix: str) -> None:
    own = [(m, c.key) for m in METRICS.values() for c in m.columns if c.key.startswith(prefix)]
    assert own
    full = subject("digits-client" if part in ("triggered", "forget") else "digits-class")
    for metric, key in own:
        for given in (full, replace(full, **{part: ()})):
            answer = measure(metric, given)
            assert (not isinstance(answer, str) and key in answer) == (given is full), key


# --------------------------------------------------------------------------- the registry
def test_keys_are_unique_and_columns_are_described() -> None:
    columns = [c for m in METRICS.values() for c in m.columns]
    assert len({c.key for c in columns}) == len(columns)
    assert all(name == m.name for name, m in METRICS.items())
    for c in columns:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c.key)
        assert c.title
        assert re.fullmatch(r"[A-Z0-9].*\.", c.about), c.about


def plenty() -> Subject:
    """Random pictures, 150 of each class in each part: more than digits have."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1500) % 10
    parts = [torch.randn(1500, 64, generator=generator) for _ in PARTS]
    own = [y == 3, y != 3, y >= 0, y >= 0]
    batches = {part: [(x[rows], y[rows])] for part, x, rows in zip(PARTS, parts, own, strict=True)}
    return Subject(Careful(0), Careful(1), Careful(2), **batches, classes=(3,))


@pytest.mark.parametrize("metric", METRICS)
def test_every_column_is_measured_in_some_setting(metric: str) -> None:
    found = set()
    for s in (*map(subject, SETTINGS), plenty()):
        answer = measure(METRICS[metric], s)
        found |= set() if isinstance(answer, str) else answer.keys()
    assert found >= {c.key for c in METRICS[metric].columns}


class WithSideHead(nn.Module):
    """A model whose last registered linear layer, never called, is not the one that gives the logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.side = inner, nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("name", ["probe", "relearning"])
def test_the_head_that_is_named_is_used(name: str) -> None:
    case = trained("digits-class")
    plain = subject_of(case.clients[1], case.history.current(), case.history.current(), 0)
    with torch.no_grad():
        plain.model.head.bias[3] -= 100  # masked: from the wrong row it would not be relearned
    named = replace(plain, model=WithSideHead(plain.model), head="inner.head")
    assert METRICS[name].measure(named) == METRICS[name].measure(plain)
    missing = measure(METRICS[name], replace(named, head="heads"))
    assert "head='heads' is no nn.Linear" in str(missing)
