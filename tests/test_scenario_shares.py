"""Who gets which samples: no sample twice, labels respected, the same for the same seed."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.plan import PlannedModel
from simulations.scenarios import SCENARIOS, Scenario, ScenarioError, build
from simulations.scenarios.shares import PARTITIONS, held_out, share

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
GIVEN = ("parallel-missing", "incremental", "incremental-30")
"""Scenarios that say themselves which retained labels each owner has."""


def check(scenario: Scenario, labels: np.ndarray, found: dict[str, np.ndarray]) -> None:
    assert tuple(found) == scenario.owners
    for owner, own in found.items():
        assert own.dtype == np.int64
        assert own.size > 0
        assert np.all(np.diff(own) > 0), "ascending, none twice"
        assert set(labels[own].tolist()) <= set(scenario.labels[owner])
    everything = np.concatenate(list(found.values()))
    assert len(np.unique(everything)) == len(everything), "no sample goes to two owners"
    for owner, forget in scenario.holders().items():
        assert set(forget) <= set(labels[found[owner]].tolist()), "every holder has what it is to forget"


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_can_be_dealt(name: str, partition: str) -> None:
    scenario = build(name, 10)
    if partition == "pathological" and name in GIVEN:
        with pytest.raises(ScenarioError, match="this scenario gives owners different ones itself"):
            share(scenario, LABELS, partition=partition)
        return
    found = share(scenario, LABELS, partition=partition, seed=3)
    check(scenario, LABELS, found)
    again = share(scenario, LABELS, partition=partition, seed=3)
    other = share(scenario, LABELS, partition=partition, seed=4)
    assert all(np.array_equal(found[o], again[o]) for o in found)
    assert not all(np.array_equal(found[o], other[o]) for o in found)
    if partition != "pathological":
        owned = {label for own in scenario.labels.values() for label in own}
        assert sum(map(len, found.values())) == np.isin(LABELS, [*owned]).sum(), "nothing is left out"


@settings(max_examples=40)
@given(st.data())
def test_even_against_counting(data: st.DataObject) -> None:
    names = [f"o{i}" for i in range(data.draw(st.integers(1, 4)))]
    labels = {o: tuple(sorted(data.draw(st.sets(st.integers(0, 5), min_size=1)))) for o in names}
    scenario = Scenario("drawn", "", (), labels, labels[names[0]][:1])
    given_ = np.array([*range(6)] * 4 + data.draw(st.lists(st.integers(0, 8), max_size=30)))
    found = share(scenario, given_, seed=data.draw(st.integers(0, 5)))
    check(scenario, given_, found)
    for label in range(9):
        owners = [o for o in names if label in labels[o]]
        counts = [int((given_[found[o]] == label).sum()) for o in owners]
        assert sum(counts) == (int((given_ == label).sum()) if owners else 0)
        assert max(counts, default=0) - min(counts, default=0) <= 1


@settings(max_examples=10)
@given(
    st.floats(0.2, 50), st.integers(0, 99), st.sampled_from(["diamond", "incremental", "parallel-missing"])
)
def test_dirichlet(alpha: float, seed: int, name: str) -> None:
    scenario = build(name, 10)
    try:
        found = share(scenario, LABELS, partition="dirichlet", alpha=alpha, seed=seed)
    except ScenarioError as e:
        if "raise alpha" not in str(e) or alpha >= 1:  # ten draws may leave somebody too little
            raise
        return
    check(scenario, LABELS, found)
    for label in scenario.forget:
        counts = [int((LABELS[found[o]] == label).sum()) for o in scenario.holders()]
        assert max(counts) - min(counts) <= 1, "what is to be forgotten is split evenly"


def test_dirichlet_is_more_skewed_with_a_small_alpha() -> None:
    def skew(alpha: float) -> float:
        found = share(build("depth", 10), LABELS, partition="dirichlet", alpha=alpha, seed=1)
        counts = [np.bincount(LABELS[own], minlength=10)[1:] for own in found.values()]
        return float(np.std(counts))

    assert skew(0.1) > 2 * skew(100)


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(0, 99))
def test_pathological(per_owner: int, seed: int) -> None:
    scenario = build("diamond", 10)
    found = share(scenario, LABELS, partition="pathological", classes_per_owner=per_owner, seed=seed)
    check(scenario, LABELS, found)
    for own in found.values():
        assert len(set(LABELS[own].tolist()) - {0}) == per_owner


def test_pathological_tells_what_nobody_gets(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fl_unlearn.scenarios"):
        share(build("diamond", 10), LABELS, partition="pathological", classes_per_owner=1)
    assert "gives classes 5-9 to nobody" in caplog.text


def test_even_known_answer() -> None:
    scenario = Scenario("two", "", (PlannedModel("m", owner="a"),), {"a": (0, 1), "b": (1,)}, (0,))
    found = share(scenario, np.array([0, 1, 2, 1, 0, 1, 1]))
    assert Counter(np.array([0, 1, 2, 1, 0, 1, 1])[found["a"]].tolist()) == {0: 2, 1: 2}
    assert len(found["b"]) == 2


# --------------------------------------------------------------------------- test samples
@settings(max_examples=40)
@given(st.data())
def test_held_out_in_proportion(data: st.DataObject) -> None:
    owners = [f"o{i}" for i in range(data.draw(st.integers(1, 4)))]
    counts = {o: data.draw(st.lists(st.integers(0, 6), min_size=3, max_size=3)) for o in owners}
    counts[owners[0]][0] += 1
    train, shares = [], {}
    for owner, own in counts.items():
        start = len(train)
        train += [label for label, n in enumerate(own) for _ in range(n)]
        shares[owner] = np.arange(start, len(train))
    test = np.array(data.draw(st.lists(st.integers(0, 3), min_size=60, max_size=90)))
    try:
        found = held_out(shares, np.array(train), test, seed=data.draw(st.integers(0, 5)))
    except ScenarioError:
        due = [sum(dues(counts, test, owner)) for owner in owners]
        assert min(due) <= 3, "rounding takes at most one sample of each of the three labels"
        return
    everything = np.concatenate(list(found.values()))
    assert len(np.unique(everything)) == len(everything)
    known = [label for label in range(3) if any(own[label] for own in counts.values())]
    assert len(everything) == np.isin(test, known).sum(), "every sample of a label that somebody has"
    for owner in owners:
        got = np.bincount(test[found[owner]], minlength=4)
        assert got[3] == 0
        assert np.abs(got[:3] - dues(counts, test, owner)).max() <= 1


def dues(counts: dict[str, list[int]], test: np.ndarray, owner: str) -> list[float]:
    """What an owner should get of each label, before rounding."""
    totals = [max(1, sum(own[label] for own in counts.values())) for label in range(3)]
    return [(test == k).sum() * n / totals[k] for k, n in enumerate(counts[owner])]


def test_held_out_of_an_even_share_is_even() -> None:
    scenario = build("several", 10)
    test = np.repeat(np.arange(10), 12)
    found = held_out(share(scenario, LABELS), LABELS, test)
    check(scenario, test, found)
    assert {o: len(own) for o, own in found.items()} == {
        o: len(own) for o, own in share(scenario, test).items()
    }
    with pytest.raises(ScenarioError, match="no sample is left for client1"):
        held_out(share(scenario, LABELS), LABELS, np.array([0, 1]))


# --------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"partition": "dirichlett"}, "the known ones are even, .* did you mean 'dirichlet'"),
        (LABELS, {"alpha": 0.0}, "alpha must be a finite number above 0, got 0.0"),
        (LABELS, {"alpha": float("inf")}, "alpha"),
        (LABELS, {"classes_per_owner": 0}, "classes_per_owner must be at least 1, got 0"),
        (LABELS, {"partition": "pathological", "classes_per_owner": 10}, "10 classes each"),
        (LABELS[:0], {}, r"got shape \(0,\)"),
        (LABELS.reshape(20, 20), {}, r"got shape \(20, 20\)"),
        (LABELS / 2, {}, "float64"),
        (LABELS - 1, {}, "least -1"),
        (LABELS[LABELS != 7], {}, "there is no sample of class 7 .*the data has 0-6, 8-9"),
        (np.array([0, *range(1, 10)]), {}, "class 0 is to be forgotten and has 1 samples.* 2 holders"),
    ],
)
def test_bad_input(labels: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        share(build("diamond", 10), labels, **options)


def test_dirichlet_that_leaves_somebody_without() -> None:
    scenario = build("diamond", 10, forget=range(7))
    with pytest.raises(ScenarioError, match=r"classes 7-9, of client1, .*client4: .*raise alpha"):
        share(scenario, LABELS, partition="dirichlet", alpha=1e-4)
