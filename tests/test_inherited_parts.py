"""What the figures on graphs are measured with: blocks, holders one by one, answers and points kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_unlearn.centring import centred
from fl_unlearn.dampen import apply_update
from fl_unlearn.fisher import FisherSums
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import REST, ClassScores, ForgetRequest, TensorSpec, UnlearnSettings, signature_of
from fl_unlearn.update import DampeningUpdate, Entry
from simulations.figures.inherited import mfim
from simulations.figures.inherited.blocks import last_block
from simulations.figures.inherited.holders import OneHolder, composed
from simulations.figures.inherited.points import Point, Points
from simulations.figures.inherited.records import generations
from simulations.figures.inherited.remembering import Remembering
from simulations.inheritance.results import Row
from simulations.scenarios.contract import Scenario
from strategies.contract import Cost
from strategies.tasks import Answer


# --------------------------------------------------------------------------- blocks
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = nn.Sequential(self._block(), self._block())
        self.fc = nn.Linear(4, 2)

    @staticmethod
    def _block() -> nn.Module:
        return nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3), "bn": nn.BatchNorm2d(4)})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.lstm = nn.LSTM(3, 4)
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("model", "head", "block"),
    [
        (Residual(), "fc", "layer.1"),
        (Recurrent(), "head", "lstm"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), "4", "2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), "1", ""),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))), "0.2", "0.1"),
    ],
    ids=["residual", "recurrent", "plain", "head alone", "classifier around the head"],
)
def test_last_block(model: nn.Module, head: str, block: str) -> None:
    assert last_block(model, head) == block


# --------------------------------------------------------------------------- holders one by one
SPEC = TensorSpec((2, 3), "F32")


@st.composite
def updates(draw: st.DrawFn) -> DampeningUpdate:
    entries = {}
    for name in draw(st.sets(st.sampled_from(["w", "v"]))):
        chosen = sorted(draw(st.sets(st.integers(0, 5), min_size=1)))
        factors = draw(st.lists(st.floats(0, 0.875, width=32), min_size=len(chosen), max_size=len(chosen)))
        entries[name] = Entry(torch.tensor(chosen), torch.tensor(factors, dtype=torch.float32), SPEC)
    return DampeningUpdate(entries, 2.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(updates(), min_size=1, max_size=4))
def test_composed_does_what_one_after_another_does(several: list[DampeningUpdate]) -> None:
    state = {"w": torch.randn(2, 3), "v": torch.randn(2, 3), "other": torch.ones(1)}
    expected: Mapping[str, torch.Tensor] = state
    for update in several:
        expected = apply_update(expected, update)
    together = apply_update(state, composed(several))
    for name, tensor in expected.items():
        torch.testing.assert_close(together[name], tensor)


class Everybody:
    """Two owners of class 0, one of whom has class 1 too."""

    def counts(self, request: ForgetRequest) -> dict[str, dict[int, int]]:
        return {"a": {0: 3, 1: 2, REST: 9}, "b": {0: 4, 1: 0, REST: 8}}

    def fishers(
        self, state: Any, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> dict[str, FisherSums]:
        sums = {g: {"w": torch.ones(1)} for g in (0, 1, REST)}
        return {o: FisherSums("normalized", "head", 3, sums, dict.fromkeys(sums, 1)) for o in owners}

    def scores(
        self, state: Any, request: ForgetRequest, settings: UnlearnSettings, base: Any, owners: Sequence[str]
    ) -> dict[str, list[ClassScores]]:
        each = dict.fromkeys((0, 1, 2), 5)
        return {o: [ClassScores(each, each, dict.fromkeys(each, 1.0))] for o in owners}


def test_one_holder_alone() -> None:
    request = ForgetRequest((0,))
    alone = OneHolder(Everybody(), "b", others=[1])
    assert alone.counts(request) == {"a": {REST: 9}, "b": {0: 4, REST: 8}}
    sums = alone.fishers({}, request, UnlearnSettings(), ["a", "b"])
    assert {o: set(s.counts) for o, s in sums.items()} == {"a": {REST}, "b": {0, 1, REST}}
    assert set(sums["a"].sums) == {REST}
    scores = alone.scores({}, request, UnlearnSettings(), DampeningUpdate({}, 1.0), ["a"])
    assert set(scores["a"][0].total) == {0, 2}


# --------------------------------------------------------------------------- remembered answers
class Asked:
    """A federation that counts what it is asked."""

    def __init__(self) -> None:
        self.request, self.clients, self.cost, self.asked = ForgetRequest((0,)), {}, Cost(), 0

    def ask(
        self, task: str, tensors: Any = None, settings: Any = None, clients: Any = None
    ) -> dict[str, Answer]:
        self.asked += 1
        return {"a": Answer(self.asked, {"0": {"w": torch.ones(4)}})}


def test_the_same_question_is_asked_once() -> None:
    inner = Asked()
    federation = Remembering(inner)
    model = {"model": {"w": torch.zeros(2)}}
    first = federation.ask("fisher", model, {"kind": "normalized"}, ["a"])
    assert federation.ask("fisher", {"model": {"w": torch.zeros(2)}}, {"kind": "normalized"}, ["a"]) == first
    assert inner.asked == 1
    others: list[tuple[Any, Any, Any]] = [
        ({"model": {"w": torch.ones(2)}}, {"kind": "normalized"}, ["a"]),
        ({"model": {"v": torch.zeros(2)}}, {"kind": "normalized"}, ["a"]),
        ({"model": {"w": torch.zeros(2, 1)}}, {"kind": "normalized"}, ["a"]),
        (model, {"kind": "batch"}, ["a"]),
        (model, {"kind": "normalized"}, ["b"]),
        (model, {"kind": "normalized"}, None),
    ]
    for n, question in enumerate(others, start=2):
        federation.ask("fisher", *question)
        assert inner.asked == n


def test_scores_are_asked_every_time_and_memory_is_bounded() -> None:
    inner = Asked()
    for federation, task in ((Remembering(inner), "fiun.scores"), (Remembering(inner, most=15), "fisher")):
        before = inner.asked
        for _ in range(2):
            federation.ask(task, {}, {})
        assert inner.asked == before + 2
    roomy = Remembering(inner, most=16)
    before = inner.asked
    for _ in range(2):
        roomy.ask("fisher", {}, {})
    assert inner.asked == before + 1


# --------------------------------------------------------------------------- kept points
def test_points_are_kept_by_what_decides_them(tmp_path: Path) -> None:
    one = Point((Row("r1", "ours", 0.0, 0.9), Row("r2", "ours", None, 0.8)), 1.5, {"r1": 3.0}, {"r1": 0.1})
    refused = Point((), 2.0, {}, {}, "none passed")
    Points(tmp_path / "points.json").put(
        [({"t": 3.0, "graph": "x"}, one), ({"t": 1.0, "graph": "x"}, refused)]
    )
    again = Points(tmp_path / "points.json")
    assert again.get({"graph": "x", "t": 3.0}) == one
    assert again.get({"graph": "x", "t": 1.0}) == refused
    assert again.get({"graph": "y", "t": 3.0}) is None
    (tmp_path / "points.json").write_text('{"dama')
    assert Points(tmp_path / "points.json").get({"graph": "x", "t": 3.0}) is None


# --------------------------------------------------------------------------- graphs
def scenario(forget: tuple[int, ...] = (0, 1)) -> Scenario:
    p = PlannedModel
    models = (
        p("i"),
        p("a", ["i"], "x"),
        p("b", ["i"], "y"),
        p("c", ["a", "b"], "z"),
        p("d", ["i", "c"], "z"),
    )
    return Scenario("s", "Two roots.", models, {"x": (0, 2, 3), "y": (1, 2, 3), "z": (2, 3)}, forget)


def test_generations_are_the_longest_ways() -> None:
    assert generations(scenario()) == {"i": 0, "a": 1, "b": 1, "c": 2, "d": 3}


def test_merging_needs_several_first_models() -> None:
    assert mfim.roots(scenario()) == ["a", "b"]
    assert mfim.unfit(scenario()) == ""
    assert "a alone learned first" in mfim.unfit(scenario((0,)))
    late = replace(scenario(), labels={"x": (0, 2), "y": (2, 3), "z": (0, 2)}, forget=(0,))
    assert mfim.roots(late) == ["a"], "what inherits from a root is none"


def test_updates_that_map_whole_layers_are_not_composed() -> None:
    signature = signature_of(torch.nn.Linear(3, 2).state_dict())
    centring = DampeningUpdate({}, 1.0, 1.0, centred("", (0,), signature))
    with pytest.raises(ValueError, match="cannot be composed"):
        composed([centring, centring])
