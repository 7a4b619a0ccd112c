"""Scenarios: each graph and its owners as the paper has them, and the same answers as the recorded graph."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.plan import PlannedModel
from simulations.scenarios import LEAST_RETAINED, SCENARIOS, Scenario, ScenarioError, build
from simulations.scenarios.incremental import stage_sizes
from simulations.scenarios.labels import cut, ranges
from simulations.scenarios.overlap import overlap

GRAPHS = {
    "diamond": {
        "init": [],
        "d": ["init"],
        "s": ["init"],
        "r1": ["d", "s"],
        "r2": ["r1"],
        "r3": ["d", "r2"],
        "r4": ["r1", "r2"],
    },
    "several": {"init": [], "r1": ["init"], "r2": ["init"], "r4": ["r1", "r2"]},
    "parallel": {"init": [], "u1": ["init"], "u2": ["init"], "u3": ["init"], "u0": ["u1", "u2", "u3"]},
    "parallel-missing": {
        "init": [],
        "u1": ["init"],
        "u2": ["init"],
        "u3": ["init"],
        "u0": ["u1", "u2", "u3"],
    },
    "incremental": {"u0": [], "u1": ["u0"], "u2": ["u1"], "u3": ["u2"]},
    "incremental-30": {f"u{i}": [f"u{i - 1}"] if i else [] for i in range(30)},
    "transfer": {"u0": [], "u1": ["u0"], "u2": ["u0"], "u3": ["u0"], "u4": ["u0"]},
    "depth": {"u0": [], "u1": ["u0"]} | {f"u{i}": [f"u{i - 2}", f"u{i - 1}"] for i in range(2, 50)},
}
"""Model to its parents, as design.md lists them; ``init`` is ours."""

CLEAN = {
    "diamond": ["init", "d", "s"],
    "several": ["init"],
    "parallel": ["init"],
    "parallel-missing": ["init"],
}
ROOTS = {
    "diamond": ["r1"],
    "several": ["r1", "r2"],
    "parallel": ["u1", "u2", "u3"],
    "parallel-missing": ["u1", "u2", "u3"],
    "incremental": ["u0"],
    "incremental-30": ["u0"],
    "transfer": ["u0"],
    "depth": ["u0"],
}


def test_every_scenario_has_its_answer_here() -> None:
    assert GRAPHS.keys() == SCENARIOS.keys() - {"random"} == ROOTS.keys()  # random: test_random_dag


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("num_classes", [10, 100])
def test_the_graph_is_the_papers(name: str, num_classes: int) -> None:
    scenario = build(name, num_classes)
    assert scenario.name == name
    assert {m.name: sorted(m.parents) for m in scenario.models} == {
        model: sorted(parents) for model, parents in GRAPHS[name].items()
    }
    for model in scenario.models:
        assert set(model.parents.values()) <= {1 / max(1, len(model.parents))}
    clean = CLEAN.get(name, [])
    assert scenario.affected() == [m.name for m in scenario.models if m.name not in clean]
    assert scenario.roots() == ROOTS[name]


def owner_of(scenario: Scenario) -> dict[str, str | None]:
    return {m.name: m.owner for m in scenario.models}


def classes(scenario: Scenario, model: str) -> set[int]:
    """What the owner of a model has."""
    return set(scenario.labels[str(owner_of(scenario)[model])])


def test_diamond_two_holders_of_one_class() -> None:
    s = build("diamond", 100)
    owner = owner_of(s)
    assert s.forget == (0,)
    assert owner["init"] is None
    assert owner["r1"] == owner["r2"] != owner["r3"] == owner["r4"]
    assert len({owner["d"], owner["s"], owner["r1"], owner["r3"]}) == 4
    assert classes(s, "d") == classes(s, "s") == set(range(1, 100))
    assert classes(s, "r1") == classes(s, "r3") == set(range(100))
    assert s.holders() == {owner["r1"]: (0,), owner["r3"]: (0,)}


def test_several_two_roots_with_half_each() -> None:
    s = build("several", 100)
    kept = set(range(10, 100))
    assert s.forget == tuple(range(10))
    assert classes(s, "r1") == {5, 6, 7, 8, 9} | kept
    assert classes(s, "r2") == {0, 1, 2, 3, 4} | kept
    assert len(s.owners) == 3
    assert build("several", 10).forget == (0, 1, 2, 3)
    odd = build("several", 10, forget=(1, 4, 7))
    assert (classes(odd, "r1") & {1, 4, 7}, classes(odd, "r2") & {1, 4, 7}) == ({4, 7}, {1})


def test_parallel_three_roots_with_a_third_each() -> None:
    s = build("parallel", 100)
    assert s.forget == tuple(range(15))
    for model, own in {"u1": range(5), "u2": range(5, 10), "u3": range(10, 15)}.items():
        assert classes(s, model) == {*own, *range(15, 100)}
    assert owner_of(s)["u0"] is None
    assert build("parallel", 10).forget == (0, 1, 2)


def test_parallel_missing_classes() -> None:
    s = build("parallel-missing", 100)
    everything = set(range(100))
    assert s.forget == (0,)
    assert everything - classes(s, "u1") == set(range(80, 100))
    assert everything - classes(s, "u2") == set(range(90, 100))
    assert everything - classes(s, "u3") == set(range(10, 20))
    with pytest.raises(ScenarioError, match="at least 10 are needed, got 9"):
        build("parallel-missing", 9)


def test_incremental_classes_of_each_stage() -> None:
    s = build("incremental", 100)
    assert [classes(s, f"u{i}") for i in range(4)] == [set(range(n)) for n in (90, 92, 94, 98)]
    assert stage_sizes(10, 4) == [7, 8, 9, 10]
    long = build("incremental-30", 100)
    sizes = [len(classes(long, f"u{i}")) for i in range(30)]
    assert sizes == sorted(sizes)
    assert set(sizes) == set(range(90, 99))
    assert len(long.owners) == len(set(sizes)), "stages with the same classes share their data"
    with pytest.raises(ScenarioError, match="nobody owns class 99"):
        build("incremental", 100, forget=(99,))
    late = build("incremental", 100, forget=(91,))
    assert late.roots() == ["u1"]


@given(st.integers(5, 300), st.integers(2, 40))
def test_stages_never_lose_classes(num_classes: int, length: int) -> None:
    sizes = stage_sizes(num_classes, length)
    assert len(sizes) == length
    assert sizes == sorted(sizes)
    assert sizes[-1] == round(0.98 * num_classes)
    assert 1 <= sizes[0] <= round(0.9 * num_classes)


def test_transfer_only_the_head() -> None:
    s = build("transfer", 100)
    assert s.forget == (0, 1, 2, 3, 4)
    assert [m.trains for m in s.models] == ["all", "head", "head", "head", "head"]
    assert len(set(owner_of(s).values())) == 5
    assert all(len(labels) == 100 for labels in s.labels.values())


def test_length() -> None:
    assert [m.name for m in build("depth", 10, length=3).models] == ["u0", "u1", "u2"]
    assert build("depth", 10, length=3).owners == ("client1", "client2", "client3")
    assert len(build("incremental", 10, length=7).models) == 7
    assert len(build("incremental-30", 10, length=12).models) == 12
    with pytest.raises(ScenarioError, match="depth needs at least 3 models, got 2"):
        build("depth", 10, length=2)
    with pytest.raises(ScenarioError, match="incremental needs at least 2 stages, got 1"):
        build("incremental", 10, length=1)
    with pytest.raises(ScenarioError, match=r"diamond has no length.*incremental, incremental-30, depth"):
        build("diamond", 10, length=5)


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ((10,), "class 10 is to be forgotten, but the 10 classes are 0 to 9"),
        ((-1,), "class -1"),
        ((1, 1), "named twice"),
        ((), "at least 1 classes to forget are needed here, got \\[\\]"),
        ("01", "got the text '01'"),
        ((0.5,), "list of whole numbers"),
        (range(9), "would have 1 retained classes and needs 2"),
    ],
)
def test_labels_that_cannot_be_forgotten(forget: tuple[int, ...], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        build("diamond", 10, forget=forget)


def test_too_few_labels_for_the_holders() -> None:
    with pytest.raises(ScenarioError, match=r"at least 2 classes .* got \[3\]"):
        build("several", 10, forget=(3,))
    with pytest.raises(ScenarioError, match=r"at least 3 classes .* got \[3, 4\]"):
        build("parallel", 10, forget=(3, 4))
    with pytest.raises(ScenarioError, match="at least 2 classes, got 1"):
        build("diamond", 1)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ScenarioError, match=r"'paralel': the known ones are diamond, .* mean 'parallel'"):
        build("paralel", 10)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_recorded_graph_agrees(name: str, tmp_path: Path) -> None:
    scenario = build(name, 10, length=6 if name in ("depth", "incremental-30") else None)
    with ModelGraph(tmp_path) as graph:
        weights = {"w": torch.zeros(1)}
        graph.grow(scenario.models, lambda m: weights, lambda m, state: state)
        roots = [n.name for n in graph.umig.roots(scenario.holders())]
        assert roots == scenario.roots()
        assert [n.name for n in graph.umig.affected(roots)] == scenario.affected()


def test_roots_follow_inheritance_not_ownership() -> None:
    """A holder's later model that inherits from another holder's is no root; one beside it is."""
    models = (
        PlannedModel("a", owner="x"),
        PlannedModel("b", {"a": 1}, "y"),
        PlannedModel("c", {"b": 1}, "x"),
        PlannedModel("e", owner="y"),
    )
    scenario = Scenario("test", "", models, {"x": (0, 1, 2), "y": (1, 2)}, (0,))
    assert scenario.roots() == ["a"]
    assert scenario.affected() == ["a", "b", "c"]
    assert scenario.holders() == {"x": (0,)}


# --------------------------------------------------------------------------- label overlap
@given(st.integers(1, 60), st.integers(1, 6), st.fractions(0, 1, max_denominator=20))
def test_overlap(count: int, owners: int, share: Fraction) -> None:
    names = [f"o{i}" for i in range(owners)]
    found = overlap(range(count), names, float(share))
    own = [set(found[name]) for name in names]
    assert set().union(*own) == set(range(count)), "every label is somebody's"
    common = set.intersection(*own)
    for a, b in combinations(own, 2):
        assert a & b == common, "what two have in common, all have"
    sizes = sorted(map(len, own))
    assert sizes[-1] - sizes[0] <= 1
    if owners > 1:
        # One common label more or less is as near as whole labels come.
        size = len(common) + (count - len(common)) / owners
        assert abs(len(common) - float(share) * size) <= 1


def test_overlap_known_answers() -> None:
    assert overlap(range(6), ["a", "b", "c"], 0) == {"a": (0, 3), "b": (1, 4), "c": (2, 5)}
    assert overlap([4, 5, 6], ["a", "b"], 1) == {"a": (4, 5, 6), "b": (4, 5, 6)}
    # 6 labels, 2 owners: 2 in common and 2 of their own each is one half of 4.
    assert overlap(range(6), ["a", "b"], 0.5) == {"a": (0, 1, 2, 4), "b": (0, 1, 3, 5)}
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ScenarioError, match=f"between 0 .* got {share}"):
            overlap(range(6), ["a"], share)
    with pytest.raises(ScenarioError, match="at least one owner"):
        overlap(range(6), [], 0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["diamond", "several", "parallel", "depth"])
def test_overlap_leaves_the_holders_alone(name: str, share: float) -> None:
    plain, scenario = build(name, 20), build(name, 20, overlap=share)
    assert scenario.holders() == plain.holders()
    assert scenario.models == plain.models
    assert scenario.affected() == plain.affected()
    kept = {owner: set(labels) - set(plain.forget) for owner, labels in scenario.labels.items()}
    assert min(map(len, kept.values())) >= LEAST_RETAINED
    if share == 1:
        assert scenario.labels == plain.labels
    for a, b in combinations(kept.values(), 2):
        assert bool(a & b) == (share > 0)


def test_overlap_that_cannot_be() -> None:
    with pytest.raises(ScenarioError, match=r"cannot be chosen for 'incremental'.*leave overlap out"):
        build("incremental", 100, overlap=0.5)
    with pytest.raises(ScenarioError, match=r"transfer: client3 would have 1 retained.*raise the overlap"):
        build("transfer", 10, overlap=0)


def test_label_words_and_parts() -> None:
    assert ranges([]) == ""
    assert ranges([7, 0, 5, 6, 9]) == "0, 5-7, 9"
    assert cut((1, 2, 3, 4, 5), 2) == [(1, 2), (3, 4, 5)]
