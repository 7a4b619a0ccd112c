from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_unlearn import UMIG
from simulations.scenarios import build
from simulations.scenarios.contract import ScenarioError
from simulations.scenarios.random_dag import random_dag


@st.composite
def arguments(draw):
    nodes = draw(st.integers(2, 60))
    roots = draw(st.floats(0, 0.9))
    children = nodes - max(1, round(roots * nodes))
    if children < 1:
        roots, children = 0.0, nodes - 1
    return {
        "nodes": nodes,
        "roots": roots,
        "in_degree": draw(st.sampled_from([1.0, 1.2, 1.5, 2.0, 3.0])),
        "owners": draw(st.integers(2, 6)),
        "affected": draw(st.none() | st.integers(1, children)),
        "forget": draw(st.sampled_from([(0,), (3, 1), tuple(range(9))])),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=80)
@given(arguments())
def test_a_random_graph_is_as_asked(asked):
    try:
        scenario = random_dag(**asked)
    except ScenarioError:
        assume(asked["in_degree"] == 1)  # one parent is always to be had
        raise
    models = scenario.models
    assert len(models) == asked["nodes"] == len({m.name for m in models})
    assert [m.name for m in models] == sorted(m.name for m in models)
    seen = set()
    for model in models:
        assert model.parents.keys() <= seen
        assert (model.owner is None) == (not model.parents)
        seen.add(model.name)
    children = [m for m in models if m.parents]
    assert len(models) - len(children) == max(1, round(asked["roots"] * asked["nodes"]))
    assert sum(len(m.parents) for m in children) == round(asked["in_degree"] * len(children))
    assert len(scenario.owners) == asked["owners"]
    wanted = asked["affected"] or (len(children) + 1) // 2
    assert len(scenario.affected()) == wanted
    assert scenario.forget == tuple(sorted(asked["forget"]))
    holders = [o for o, own in scenario.labels.items() if set(scenario.forget) & set(own)]
    assert 1 <= len(holders) < asked["owners"]
    assert random_dag(**asked) == scenario
    # What the library finds in the graph is what the labels say.
    with UMIG() as umig:
        for i, m in enumerate(models):
            kind = "trained" if m.owner else "initial"
            umig.add(m.name, kind=kind, round=i, parents=m.parents, owner=m.owner)
        found = umig.affected(n.name for n in umig.roots(holders))
        assert [n.name for n in found] == scenario.affected()


def test_seeds_give_different_graphs():
    assert len({random_dag(30, seed=s).models for s in range(5)}) == 5


@pytest.mark.parametrize("affected", [1, 10, 500])
def test_large_graphs_are_as_asked(affected):
    scenario = random_dag(1000, affected=affected, in_degree=2.5)
    assert len(scenario.affected()) == affected
    assert sum(len(m.parents) for m in scenario.models) == 2250


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nodes": 1}, "at least 2 nodes, got 1"),
        ({"roots": -0.1}, "roots is a share .* got -0.1"),
        ({"roots": 1.0}, "with roots=1 none of 20 models would have parents"),
        ({"roots": float("nan")}, "roots is a share"),
        ({"in_degree": 0.5}, "in_degree is a mean .* at least 1, got 0.5"),
        ({"in_degree": float("nan")}, "in_degree is"),
        ({"in_degree": 15}, r"can have \d+.\d\d parents on average, got in_degree=15; use more nodes"),
        ({"owners": 1}, "at least 2 owners"),
        ({"affected": 0}, "of 18 models with parents 1 to 18 can be affected, got 0"),
        ({"affected": 19}, "got 19"),
        ({"forget": ()}, r"some of the labels 0 to 9, and not all, got \(\)"),
        ({"forget": (10,)}, "some of the labels"),
        ({"forget": tuple(range(10))}, "and not all"),
    ],
)
def test_what_cannot_be_had_is_refused(asked, message):
    with pytest.raises(ScenarioError, match=message):
        random_dag(**{"nodes": 20, **asked})


def test_as_a_scenario_it_is_found_by_name_and_length_is_its_number_of_models() -> None:
    assert build("random", 10, length=12, forget=[3]) == random_dag(12, forget=(3,))
