"""Forgetting as parameter estimation: the score, what is reset, and that nothing else is trained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import reference_fisher
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError
from strategies.fedunlearn_pe import information, top

numbers = st.lists(st.integers(0, 5), min_size=1, max_size=30)


@given(numbers, st.integers(0, 2**31))
def test_the_score_is_the_papers_formula(values: list[int], seed: int) -> None:
    forgotten = torch.tensor(values, dtype=torch.float64)
    rest = torch.randint(0, 3, forgotten.shape, generator=torch.Generator().manual_seed(seed)).double()
    got = information({"a": forgotten}, {"a": forgotten + rest})["a"].tolist()
    for score, own, other in zip(got, forgotten.tolist(), rest.tolist(), strict=True):
        assert score == pytest.approx(0.5 * (own / (own + other)) ** 2 if own + other else 0.0)


@given(numbers, st.floats(0.01, 1.0))
def test_the_largest_scores_of_each_tensor_are_chosen(values: list[int], share: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    chosen = top({"a": scores, "b": 100 * scores}, share)
    for mask in chosen.values():
        assert int(mask.sum()) == min(math.floor(share * len(values)), sum(v > 0 for v in values))
        if mask.any():
            assert scores[mask].min() >= (scores[~mask].max() if not mask.all() else 0)


@pytest.mark.parametrize("reset", ["zero", "initial"])
def test_what_the_forget_set_informs_most_is_reset(reset: str) -> None:
    """By hand, with every label instead of draws; and without a step of training."""
    case = trained("digits-samples", pictures=200, alpha=100.0, forget_samples="0:5,2:5")
    state, initial = case.history.current(), case.history.initial()
    strategy = strategies.get("fedunlearn-pe", share=0.3, rounds=0, true_samples=10, reset=reset)
    outcome = strategy.unlearn(case.federation(), case.history)
    model, sums = case.clients[0].model(state), []
    for part in ("forget", "retained"):
        batches = [b for c in case.clients for b in c.batches(part)]
        sums.append(reference_fisher(model, batches, "true", list(state), keep_classes=[])[0][-1])
    for name, before in state.items():
        score = 0.5 * (sums[0][name] / (sums[0][name] + sums[1][name])).nan_to_num(0.0).square()
        chosen = top({name: score}, 0.3)[name]
        wanted = before.where(~chosen, initial[name] if reset == "initial" else torch.zeros(()))
        # Which of two nearly equal scores comes first may depend on rounding.
        assert (outcome.state[name] == wanted).double().mean() > 0.995
        assert chosen.any() or int(0.3 * before.numel()) == 0


def test_only_what_was_reset_is_trained() -> None:
    case = trained()
    state = case.history.current()
    reset = strategies.get("fedunlearn-pe", rounds=0).unlearn(case.federation(), case.history).state
    trained_on = strategies.get("fedunlearn-pe", rounds=1).unlearn(case.federation(), case.history).state
    for name, before in state.items():
        kept = reset[name] == before
        torch.testing.assert_close(trained_on[name][kept], before[kept], rtol=0, atol=0)
    moved = sum(int((trained_on[n] != reset[n]).sum()) for n in state)
    assert moved > 0


@pytest.mark.parametrize(
    ("name", "what", "most"),
    [("digits-class", "forget", 0.5), ("digits-client", "triggered", 0.4), ("digits-samples", "forget", 1.0)],
)
def test_it_forgets_and_the_same_twice(name: str, what: str, most: float) -> None:
    case = trained(name)
    strategy = strategies.get("fedunlearn-pe")
    outcome, other = (strategy.unlearn(case.federation(), case.history) for _ in range(2))
    for key, tensor in outcome.state.items():
        torch.testing.assert_close(tensor, other.state[key], rtol=0, atol=0)
    before, after = (case.accuracy(s, what) for s in (case.history.current(), outcome.state))
    assert before > 0.8
    assert after < most
    assert case.accuracy(outcome.state, "retained") > 0.9


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"reset": "none"}])
def test_a_value_that_makes_no_sense_is_an_error_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(StrategyError, match=f"fedunlearn-pe: {next(iter(wrong))} must be"):
        strategies.get("fedunlearn-pe", **wrong)
