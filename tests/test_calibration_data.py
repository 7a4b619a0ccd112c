"""What is decided where a client's data or samples are to be forgotten, and with which settings."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.calibration import Candidate
from fl_unlearn.calibration_data import (
    DATA,
    choose_data,
    choose_for_data,
    judge_data,
    like_labels,
    named,
    settings_for,
)
from fl_unlearn.types import (
    ClassScores,
    ForgetRequest,
    NotEnoughAnswersError,
    SettingsError,
    UnlearnSettings,
)
from fl_unlearn.vote import Votes


def scores(correct: int, loss: float = 0.0) -> ClassScores:
    return ClassScores({0: correct}, {0: 100}, {0: loss})


GRID = UnlearnSettings(candidates=(1.0, 2.0, 3.0), dampenings=(1.0,), max_retain_drop=0.015)


def chosen(forget: list[int], held: list[int], like: float = 0.9) -> Any:
    return choose_for_data([scores(c) for c in forget], [scores(c) for c in held], like, GRID)


def test_what_takes_most_at_no_more_than_the_accepted_cost_is_chosen() -> None:
    assert chosen([100, 20, 60, 80], [90, 70, 89, 90]).threshold == 2.0
    assert chosen([100, 20, 60, 60], [90, 70, 89, 90]).threshold == 3.0, "as much for less"
    assert chosen([100, 91, 95, 99], [90, 90, 90, 90]).threshold == 1.0


def test_what_leaves_more_than_is_known_of_unseen_samples_is_refused() -> None:
    why = chosen([100, 20, 92, 95], [90, 70, 90, 90])
    assert why.startswith("clients measure 100.0% on what is to be forgotten, and 90.0% on held-out samples")
    assert "the candidate that takes most leaves 92.0%" in why
    assert "no candidate is left" in chosen([100, 20, 30, 40], [90, 70, 70, 70])
    assert "takes most leaves 80.0%" in chosen([80, 80, 80, 80], [90, 90, 90, 90]), "nothing was taken away"


def test_a_forced_threshold_is_taken_whatever_it_costs() -> None:
    settings = UnlearnSettings(threshold=2.0, force=True)
    got = choose_for_data([scores(100), scores(99)], [scores(90), scores(10)], 0.5, settings)
    assert (got.threshold, got.passed) == (2.0, False)


def test_like_labels_weighs_the_held_out_samples_by_the_forget_set() -> None:
    forget = ClassScores({0: 5, 1: 5, 2: 5}, {0: 30, 1: 10, 2: 60}, {0: 0, 1: 0, 2: 0})
    held = ClassScores({0: 1, 1: 4, 3: 0}, {0: 2, 1: 4, 3: 9}, {0: 0, 1: 0, 3: 0})
    assert like_labels(forget, held) == pytest.approx((30 * 0.5 + 10 * 1.0) / 40)
    with pytest.raises(
        NotEnoughAnswersError, match=r"held-out samples of the forget set's labels \[0, 1, 2\]"
    ):
        like_labels(forget, ClassScores({3: 0}, {3: 9}, {3: 0.0}))


def test_candidates_are_judged_by_held_out_samples_and_by_what_is_like_them() -> None:
    got = judge_data([scores(c) for c in (100, 20, 92, 80)], [scores(c) for c in (90, 70, 90, 91)], 0.9, GRID)
    assert [(c.threshold, c.forget_accuracy, c.retain_accuracy) for c in got] == [
        (1.0, 0.2, 0.7),
        (2.0, 0.92, 0.9),
        (3.0, 0.8, 0.91),
    ]
    assert [(c.passed, c.everywhere) for c in got] == [(False, True), (False, False), (True, True)]
    assert [c.cost for c in got] == pytest.approx([0.2, 0.0, 0.0])
    with pytest.raises(NotEnoughAnswersError, match="held-out data"):
        judge_data([scores(1)] * 4, [ClassScores()] * 4, 0.5, GRID)
    with pytest.raises(NotEnoughAnswersError, match="forgotten data"):
        judge_data([ClassScores()] * 4, [scores(1)] * 4, 0.5, GRID)


CLIENT, SAMPLES = ForgetRequest(clients=("a", "b")), ForgetRequest(samples={"a": (1, 2), "b": ("key",)})


@pytest.mark.parametrize("request_", [CLIENT, SAMPLES])
def test_what_is_left_at_its_default_is_as_was_measured_for_data(request_: ForgetRequest) -> None:
    got = settings_for(request_, UnlearnSettings())
    assert {name: getattr(got, name) for name in DATA} == DATA
    assert settings_for(request_, got) == got
    own = UnlearnSettings(fisher_scope="head.*", candidates=(2.0,), timeout=3.0)
    got = settings_for(request_, own)
    assert (got.fisher_scope, got.candidates, got.timeout) == ("head.*", (2.0,), 3.0)
    assert (got.merge_rule, got.dampenings, got.max_retain_drop) == ("mean", (1.0, 0.1), 0.01)
    with pytest.raises(SettingsError, match=r"only classes can be erased .* got 'auto'"):
        settings_for(request_, UnlearnSettings.preset("deep"))


def test_settings_for_classes_stay() -> None:
    deep = UnlearnSettings.preset("deep")
    assert settings_for(ForgetRequest((3,)), deep) is deep


def test_requests_in_words_do_not_name_samples() -> None:
    assert named(ForgetRequest((1, 3))) == "class 1, 3"
    assert named(ForgetRequest((3,), ("4",))) == "class 3 of client 4"
    assert named(CLIENT) == "all data of client a, b"
    assert named(SAMPLES) == "2 samples of client a, 1 sample of client b"


# --------------------------------------------------------------------------- the clients' vote
def voting(held: dict[str, list[int]], liars: float = 0.3) -> Votes:
    votes = Votes((), liars=liars)
    for client, correct in held.items():
        votes.add(client, [scores(c) for c in correct])
    return votes


def judged(said: dict[str, list[int]], forget: list[int], liars: float = 0.3) -> tuple[Any, list[Any]]:
    """What is chosen of one candidate, which changes nothing for the honest of ten clients."""
    held = {str(i): [90, 90] for i in range(10)} | said
    sums = [sum((scores(own[k]) for own in held.values()), ClassScores()) for k in range(2)]
    settings, votes = UnlearnSettings(threshold=2.0, max_retain_drop=0.01), voting(held, liars)
    own = [scores(c) for c in forget]
    like = like_labels(own[0], sums[0], votes)
    candidates = judge_data(own, sums, like, settings, votes)
    return choose_data(candidates, own[0].accuracy() or 0.0, like, settings), candidates


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_liars_cannot_keep_data_from_being_forgotten(liars: int) -> None:
    vetoes = {str(i): [90, 0] for i in range(liars)}
    assert "no candidate is left" in judged(vetoes, [100, 60], liars=0.0)[0]
    got, _ = judged(vetoes, [100, 60])
    assert (got.disputed, got.against, got.trimmed_drop) == (True, tuple(sorted(vetoes)), 0.0)
    humble = {str(i): [0, 0] for i in range(liars)}
    assert isinstance(judged(humble, [100, 85], liars=0.0)[0], str), "nobody knows such samples, they say"
    assert not judged(humble, [100, 85])[0].disputed


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_liars_cannot_hide_what_is_lost(liars: int) -> None:
    praise = {str(i): [0, 100] for i in range(liars)}
    harm = {str(i): [90, 60 + 10 * liars - 1] for i in range(liars, 10)}
    assert isinstance(judged({**harm, **praise}, [100, 0])[0], str)
    if liars == 3:
        assert not isinstance(judged({**harm, **praise}, [100, 0], liars=0.0)[0], str)


def test_a_refusal_for_data_names_who_stands_alone() -> None:
    alone = {"9": [90, 0]}
    settings = UnlearnSettings(threshold=2.0, max_retain_drop=0.01)
    held = {str(i): [90, 90] for i in range(9)}
    votes = voting(held)
    votes.add("9", [ClassScores({7: c}, {7: 100}, {7: 0.0}) for c in alone["9"]])
    sums = [ClassScores({0: 810, 7: c}, {0: 900, 7: 100}, {0: 0.0, 7: 0.0}) for c in alone["9"]]
    candidates = judge_data([scores(100), scores(50)], sums, 0.9, settings, votes)
    why = choose_data(candidates, 1.0, 0.9, settings)
    assert isinstance(why, str)
    assert "Without the word of client 9 one would have passed" in why


def test_a_surer_candidate_comes_before_a_disputed_one() -> None:
    base = Candidate(2.0, 1.0, 0.6, 0.9, 0.0, 0.6, 0.0, 0.0, True, True, trimmed_drop=0.0)
    stronger = replace(base, threshold=1.0, forget_accuracy=0.1, retain_drop=0.3, cost=0.3, disputed=True)
    assert choose_data([stronger, base], 1.0, 0.9, GRID) is base
    unfit = replace(base, forget_accuracy=0.95, passed=False)
    assert choose_data([stronger, unfit], 1.0, 0.9, GRID) is stronger


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.8, 0.9, 0.97]))
def test_the_honest_do_not_move_what_is_like_unseen_samples(seed: int, each: int, known: float) -> None:
    """Clients with few samples of each class: trimmed class by class, most would say 100 %."""
    random, votes, held = Random(seed), Votes((), liars=0.3), ClassScores()
    for client in range(10):
        right = {c: sum(random.random() < known for _ in range(each)) for c in range(10)}
        own = ClassScores(right, dict.fromkeys(range(10), each), dict.fromkeys(range(10), 0.0))
        votes.add(str(client), [own, own])
        held += own
    forget = ClassScores(
        dict.fromkeys(range(10), 9), dict.fromkeys(range(10), 10), dict.fromkeys(range(10), 0.0)
    )
    assert like_labels(forget, held, votes) == like_labels(forget, held)


def test_a_label_that_nobody_scored_counts_for_nothing() -> None:
    forget, held = ClassScores({0: 9, 1: 9}, {0: 10, 1: 10}, {0: 0.0, 1: 0.0}), scores(90)
    empty = ClassScores({0: 90, 1: 0}, {0: 100, 1: 0}, {0: 0.0, 1: 0.0})
    votes = Votes((), liars=0.3)
    for client in "abcd":
        votes.add(client, [empty, empty])
    assert like_labels(forget, empty, votes) == like_labels(forget, held) == 0.9


def test_what_one_holder_gains_counts_only_where_it_may() -> None:
    said = {
        str(i): [ClassScores({i: k}, {i: 100}, {i: 0.0}) for k in (90, 92 - 4 * (i % 2))] for i in range(6)
    }
    for gains, drop in ((False, 0.01), (True, 0.0)):
        votes = Votes((), liars=0.2, gains=gains)
        for client, own in said.items():
            votes.add(client, own)
        assert votes.verdict(1).drop == pytest.approx(drop)


def test_no_advice_that_cannot_be_followed() -> None:
    refused = Candidate(2.0, 1.0, 0.5, 0.9, 0.1, 0.5, 0.1, 0.1, False, True, against=("9",))
    assert "Defence(distrusted=('9',))" in str(choose_data([refused], 1.0, 0.9, GRID, ("4",)))
    advice = str(choose_data([refused], 1.0, 0.9, GRID, ("9",)))
    assert "Without the word of client 9" in advice
    assert "distrusted" not in advice
