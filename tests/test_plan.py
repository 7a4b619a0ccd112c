from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references_plan import slow_ordered

from fl_unlearn.plan import PlannedModel, ordered, weighted
from fl_unlearn.types import LineageError


def named(models: list[PlannedModel]) -> list[str]:
    return [m.name for m in models]


@st.composite
def plans(draw, circles: bool = False) -> list[PlannedModel]:
    """Models in any order, some of whose parents are outside of the plan: "known"."""
    names = [f"m{i}" for i in range(draw(st.integers(0, 9)))]
    models = []
    for i, name in enumerate(names):
        possible = [*(names if circles else names[:i]), "known"]
        parents = draw(st.lists(st.sampled_from(possible), max_size=3, unique=True))
        models.append(PlannedModel(name, parents))
    return draw(st.permutations(models))


# --------------------------------------------------------------------------- the order
@given(plans())
def test_order_matches_the_slow_reference(plan):
    order = ordered(plan, ["known", "m0"])
    assert order == slow_ordered(plan)
    assert sorted(named(order)) == sorted(named(plan))


@given(plans(circles=True))
def test_a_circle_is_found_whenever_there_is_one(plan):
    expected = slow_ordered(plan)
    if expected or not plan:
        assert ordered(plan, ["known"]) == expected
        return
    with pytest.raises(LineageError, match="circle") as caught:
        ordered(plan, ["known"])
    parents = {m.name: m.parents for m in plan}
    circle = str(caught.value).split(": ")[1].split(";")[0].replace("'", "").split(" from ")
    assert circle[0] == circle[-1]
    assert all(above in parents[below] for below, above in pairwise(circle))


def test_a_long_chain_is_ordered():
    chain = [PlannedModel(f"m{i}", [f"m{i - 1}"] if i else []) for i in range(3000)]
    assert ordered(reversed(chain)) == chain


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([PlannedModel("a", ["a"])], "in a circle: 'a' from 'a'; remove"),
        ([PlannedModel("a", ["b"]), PlannedModel("b", ["a"])], "circle: 'a' from 'b' from 'a'; remove"),
        ([PlannedModel("a"), PlannedModel("a")], "two models named 'a'"),
        ([PlannedModel("base"), PlannedModel("b", ["bse"])], "'b' inherits from 'bse'.* did you mean 'base'"),
        ([PlannedModel("b", ["reccorded"])], "did you mean 'recorded'"),
        ([PlannedModel("b", ["xyz"])], "not there; plan it"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(plan, message):
    with pytest.raises(LineageError, match=message):
        ordered(plan, ["recorded"])


# --------------------------------------------------------------------------- weights
@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(1e-9, 1e9), max_size=6))
def test_weights_keep_their_proportions_and_sum_to_1(given_weights):
    shares = weighted(given_weights)
    total = sum(map(Fraction, given_weights.values()))
    assert shares == pytest.approx({n: float(Fraction(w) / total) for n, w in given_weights.items()})
    assert list(shares) == list(given_weights)
    assert weighted(shares) == pytest.approx(shares, rel=1e-15)


def test_weights_of_other_types_and_lists():
    assert weighted({"a": 3, "b": Fraction(1)}) == {"a": 0.75, "b": 0.25}
    assert weighted({"a": np.float32(2), "b": np.float64(2)}) == {"a": 0.5, "b": 0.5}
    assert weighted(("b", "a")) == {"b": 0.5, "a": 0.5}
    assert weighted(()) == weighted({}) == {}


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        *(({"a": 1.0, "b": w}, "weight of parent 'b' must be a finite number above 0") for w in (0, -1.0)),
        *(({"b": w}, "finite number above 0, got") for w in (float("nan"), float("inf"), True, "1", None)),
        ({"b": 10**400}, "finite number above 0"),
        ({"a": 1e308, "b": 5e-324}, "share of 'b', 5e-324 of 1e\\+308, is 0; use weights"),
        ({"a": 1.5e308, "b": 1.5e308}, "share of 'a', 1.5e\\+308 of inf, is 0"),
        (("a", "b", "a"), "named twice"),
        ("ab", "list of names"),
        (None, "list of names"),
        (7, "list of names"),
        ([1], "name of a parent must be a text, got 1"),
        ({("a",): 1.0}, "name of a parent must be a text"),
    ],
)
def test_parents_that_cannot_be_are_refused(parents, message):
    with pytest.raises(LineageError, match=message):
        weighted(parents)
    with pytest.raises(LineageError, match=message):
        PlannedModel("child", parents)


# --------------------------------------------------------------------------- one planned model
def test_a_planned_model_is_a_value():
    model = PlannedModel("m", ["a", "b"], owner="0", trains="head")
    assert model.parents == {"a": 0.5, "b": 0.5}
    assert model == PlannedModel("m", {"a": 2, "b": 2}, "0", "head")
    assert replace(model, owner=None) == PlannedModel("m", ["b", "a"], trains="head")
    assert len({model, pickle.loads(pickle.dumps(model)), PlannedModel("m")}) == 2
    with pytest.raises(FrozenInstanceError):
        model.name = "n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "name of a planned model must be a non-empty text, got ''"),
        ({"name": 3}, "name of"),
        ({"owner": ""}, "owner of"),
        ({"owner": 0}, "owner of a planned model must be a non-empty text, got 0"),
        ({"trains": ""}, "trains of"),
        ({"trains": None}, "trains of"),
    ],
)
def test_values_that_are_no_texts_are_refused(values, message):
    with pytest.raises(LineageError, match=message):
        PlannedModel(**{"name": "m", **values})


def test_a_name_too_long_for_a_file_is_refused_before_anything_is_trained():
    assert PlannedModel("n" * 200).name == "n" * 200
    with pytest.raises(LineageError, match=r"at most 200 bytes, percent-encoded; 'é{20}'\.\.\. takes 204"):
        PlannedModel("é" * 34)
