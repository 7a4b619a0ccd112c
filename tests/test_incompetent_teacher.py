"""The student of two teachers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_divergence, reference_softmax
from strategy_cases import trained
from torch import nn

import strategies
from strategies.errors import StrategyError
from strategies.incompetent_teacher import FORGET, bad_teaching


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 6))
def test_each_sample_has_its_own_teacher(seed: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    kind = torch.randint(2, (samples,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student, competent, incompetent = (nn.Linear(4, 3).double() for _ in range(3))
    targets = [
        reference_softmax((incompetent if k == FORGET else competent)(x[i]).tolist())
        for i, k in enumerate(kind.tolist())
    ]
    expected = reference_divergence(student(x), torch.tensor(targets, dtype=torch.float64), 1.0)
    assert bad_teaching(student, competent, incompetent, x, kind).item() == pytest.approx(expected)


def test_a_student_starts_with_nothing_to_learn_of_what_it_keeps() -> None:
    torch.manual_seed(0)
    competent, incompetent, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(6, 4)
    student = copy.deepcopy(competent)
    loss = bad_teaching(student, competent, incompetent, x, torch.tensor([0, 0, 1, 0, 1, 0]))
    loss.backward()
    alone = copy.deepcopy(competent)
    bad_teaching(alone, competent, incompetent, x[[2, 4]], torch.tensor([1, 1])).backward()
    torch.testing.assert_close(student.weight.grad, alone.weight.grad * 2 / 6)


@pytest.mark.parametrize(
    ("teacher", "left"),
    [("repaired", 0.3), ("random", 0.3), ("impaired", 0.7)],
)
def test_the_class_is_forgotten_with_each_teacher(teacher: str, left: float) -> None:
    case = trained()
    outcome = strategies.get("incompetent-teacher", teacher=teacher).unlearn(case.federation(), case.history)
    assert outcome.facts["teacher"] == teacher
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < left
    assert case.accuracy(outcome.state, "retained") > 0.95


def test_a_client_is_forgotten_by_the_random_teacher() -> None:
    case = trained("digits-client", rounds=10)
    federation = case.federation()
    outcome = strategies.get("incompetent-teacher", rounds=3).unlearn(federation, case.history)
    assert outcome.facts == {"rounds": 3, "teacher": "random"}
    assert federation.cost.rounds == 3
    before = case.accuracy(case.history.current(), "triggered")
    assert case.accuracy(outcome.state, "triggered") < before - 0.1
    assert case.accuracy(outcome.state, "held-out") > 0.8


def test_all_clients_have_the_same_random_teacher() -> None:
    """One that differed from client to client would teach nothing in the mean."""
    case = trained()
    strategy = strategies.get("incompetent-teacher", teacher="random")
    federation = case.federation()
    seen = []
    for client in case.clients:
        fresh = client.fresh
        client.fresh = lambda seed, fresh=fresh: seen.append(seed) or fresh(seed)
    try:
        strategy.unlearn(federation, case.history)
    finally:
        for client in case.clients:
            del client.fresh
    assert len(seen) == len(case.clients)
    assert len(set(seen)) == 1


def test_samples_move_away_from_what_the_model_knew() -> None:
    case = trained(forget_classes="", forget_samples="0:40", backdoor_client="")
    outcome = strategies.get("incompetent-teacher", rounds=2).unlearn(case.federation(), case.history)
    client = case.clients[0]

    def confidence(state, part: str) -> float:
        x, y = next(iter(client.batches(part)))
        with torch.no_grad():
            p = client.model(state)(x).softmax(1)
        return p[torch.arange(len(y)), y].mean().item()

    before, after = (confidence(s, "forget") for s in (case.history.current(), outcome.state))
    assert after < before - 0.01
    assert case.accuracy(outcome.state, "retained") > 0.95


def test_the_same_seed_gives_the_same_model() -> None:
    case = trained()
    strategy = strategies.get("incompetent-teacher")
    one, two = (strategy.unlearn(case.federation(), case.history).state for _ in range(2))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=0)


def test_the_order_of_the_curriculum_matters() -> None:
    case = trained()
    with_it, without = (
        strategies.get("incompetent-teacher", teacher="random", curriculum=c)
        .unlearn(case.federation(), case.history)
        .state
        for c in (True, False)
    )
    assert not torch.equal(with_it["head.weight"], without["head.weight"])


def test_wrong_hyper_parameters_are_refused() -> None:
    with pytest.raises(StrategyError, match="teacher must be one of impaired, repaired, random; got 'bad'"):
        strategies.get("incompetent-teacher", teacher="bad")
    with pytest.raises(StrategyError, match="incompetent-teacher: rounds must be above 0, got 0"):
        strategies.get("incompetent-teacher", rounds=0)
