from __future__ import annotations

import itertools
import math
import os

import pytest
import runs
import torch
from cases_cli import run, run_json, run_lines
from cases_graph import DIAMOND, Trainer, grow, state
from crashes import killed_at

from fl_unlearn import KeepPolicy, ModelGraph, PlannedModel, RunStore
from fl_unlearn.calibration import Candidate
from fl_unlearn.dampen import apply_update
from fl_unlearn.graph_unlearning import Found
from fl_unlearn.types import (
    ForgetRequest,
    LineageError,
    ModelMismatchError,
    StoreError,
)


# --------------------------------------------------------------------------- growing a plan
def test_grow_makes_the_models_of_a_plan(tmp_path):
    trainer, told = Trainer(), []
    with ModelGraph(tmp_path) as graph:
        nodes = grow(
            graph, trainer, DIAMOND[::-1], examples={"0": 8}, progress=lambda *args: told.append(args)
        )
        assert trainer.trained == ["right", "left", "last"]  # otherwise in the order given
        assert [n.name for n in nodes] == ["base", "right", "left", "mean", "last"]
        assert told == [(i, 5, n.name) for i, n in enumerate(nodes)]
        assert {n.name: (n.kind, n.round, n.owner, n.examples) for n in nodes} == {
            "base": ("initial", 0, None, None),
            "right": ("trained", 1, "1", None),
            "left": ("trained", 1, "0", 8),
            "mean": ("aggregate", 2, None, None),
            "last": ("trained", 3, "0", 8),
        }
        assert graph.umig.node("right").metadata == {"trains": "head"}
        assert graph.umig.parents("mean") == {"left": 0.75, "right": 0.25}
        expected = {n: t if t.dtype == torch.bool else t + 2 for n, t in state(0).items()}
        for name, tensor in graph.state("last").items():
            torch.testing.assert_close(tensor, expected[name])
        assert [n.name for n in graph.umig.roots(["0"])] == ["left"]


def test_growing_again_trains_nothing_and_a_longer_plan_only_what_is_new(tmp_path):
    with ModelGraph(tmp_path) as graph:
        grow(graph, Trainer())
        trainer = Trainer()
        before = list(graph.umig)
        assert {n.name for n in grow(graph, trainer)} == {m.name for m in DIAMOND}
        assert (trainer.trained, list(graph.umig)) == ([], before)
        more = PlannedModel("more", ["last", "left"], owner="1")
        grow(graph, trainer, [*DIAMOND, more])
        grow(graph, trainer, [PlannedModel("alone", ["more"], owner="1")])  # parents are in the graph
        assert trainer.trained == ["more", "alone"]


@pytest.mark.parametrize("fail_at", ["left", "right", "last"])
def test_what_an_exception_interrupted_goes_on(tmp_path, fail_at):
    with ModelGraph(tmp_path / "whole") as graph:
        grow(graph, Trainer())
        whole = {n.name: (n.digest, n.round) for n in graph.umig}
    with ModelGraph(tmp_path / "parts") as graph, pytest.raises(RuntimeError, match="switched off"):
        grow(graph, Trainer(fail_at))
    first, second = Trainer(), Trainer()
    with ModelGraph(tmp_path / "parts") as graph:
        there = {n.name for n in graph.umig}
        assert fail_at not in there
        grow(graph, second)
        assert {n.name: (n.digest, n.round) for n in graph.umig} == whole
    assert second.trained == [m.name for m in DIAMOND if m.owner and m.name not in there]
    assert first.trained == []


def test_killed_at_any_step_it_goes_on(tmp_path):
    plan = DIAMOND[:2]
    with ModelGraph(tmp_path / "whole") as graph:
        grow(graph, Trainer(), plan)
        whole = {n.name: n.digest for n in graph.umig}
    seen = set()
    for at in itertools.count(0, 8):
        folder = tmp_path / f"killed-{at}"

        def work(arm, folder=folder):
            with ModelGraph(folder) as graph:
                arm()
                grow(graph, Trainer(), plan)

        killed = killed_at(at, work)
        with ModelGraph(folder) as graph:
            runs.assert_sound(graph.store)
            seen.add(len(graph.umig))
            grow(graph, Trainer(), plan)
            assert {n.name: n.digest for n in graph.umig} == whole
            assert graph.store.checkpoints.names() == set(whole)
        if not killed:
            break
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([PlannedModel("left", ["base"], owner="1")], "'left' is recorded with {'owner': '0'}"),
        ([PlannedModel("left", ["base"])], "{'owner': '0'}, not with {'owner': None}"),
        ([PlannedModel("left", ["right"], owner="0")], "recorded with {'parents': {'base': 1.0}}"),
        ([PlannedModel("left", owner="0")], "recorded with {'parents': {'base': 1.0}}"),
        (
            [PlannedModel("mean", ["left", "right"])],
            "with {'parents': {'left': 0.75, 'right': 0.25}}",
        ),
        ([PlannedModel("right", ["base"], "1", "all")], "{'trains': 'head'}, not with {'trains': 'all'}"),
        ([PlannedModel("new", ["bas"], owner="0")], "'new' inherits from 'bas'.*did you mean 'base'"),
        ([PlannedModel("new", ["base", "new"], owner="0")], "circle"),
        ([PlannedModel("new"), PlannedModel("new")], "two models named 'new'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_training(tmp_path, plan, message):
    with ModelGraph(tmp_path) as graph:
        grow(graph, Trainer())
        trainer = Trainer()
        with pytest.raises(LineageError, match=message):
            grow(graph, trainer, [PlannedModel("first", owner="0"), *plan])
        assert (trainer.trained, len(graph.umig)) == ([], 5)


def test_heads_of_other_sizes_are_refused_before_training(tmp_path):
    plan = [PlannedModel("r1", owner="0"), PlannedModel("r2", owner="1")]
    trainer = Trainer()
    with ModelGraph(tmp_path) as graph:
        with pytest.raises(ModelMismatchError, match=r"'r2' differs .* one head over the union"):
            graph.grow(plan, lambda m: state(0, classes=3 if m.name == "r1" else 5), trainer.train)
        assert (trainer.trained, len(graph.umig)) == ([], 0)
        grow(graph, trainer, plan)
        with pytest.raises(ModelMismatchError, match="'r3' differs"):
            graph.grow([PlannedModel("r3", owner="0")], lambda m: state(0, classes=5), trainer.train)
        with pytest.raises(ModelMismatchError, match=r"'r4' differs .*union"):
            graph.grow(
                [PlannedModel("r4", ["r1"], owner="0")], trainer.initial, lambda m, s: state(0, classes=5)
            )
        assert (trainer.trained, len(graph.umig)) == (["r1", "r2"], 2)


def test_what_training_gives_is_checked_before_it_is_recorded(tmp_path):
    plan = DIAMOND[:2]
    with ModelGraph(tmp_path) as graph:
        with pytest.raises(LineageError, match="'left' must be a module or its state_dict, got NoneType"):
            graph.grow(plan, lambda m: state(0), lambda m, s: None)
        with pytest.raises(LineageError, match=r"'left': 12 of 12 values of 'z.weight' are not finite"):
            graph.grow(plan, lambda m: state(0), lambda m, s: {**s, "z.weight": s["z.weight"] * math.nan})
        assert [n.name for n in graph.umig] == ["base"]
        assert graph.store.checkpoints.names() == {"base"}


def test_parents_without_a_checkpoint_are_refused_before_training(tmp_path):
    trainer = Trainer()
    with ModelGraph(RunStore(tmp_path, keep=KeepPolicy(every=2))) as graph:
        with pytest.raises(StoreError, match=r"no checkpoint of 'mean' .*every=2.* keep all means"):
            grow(graph, trainer)
        graph.store.record("gone", None, kind="stage", round_=0)
        with pytest.raises(StoreError, match="no checkpoint of 'gone'"):
            grow(graph, trainer, [*DIAMOND[:2], PlannedModel("child", ["gone"], owner="0")])
        assert trainer.trained == []
        grow(graph, trainer, DIAMOND[:3])
    assert trainer.trained == ["left", "right"]


# --------------------------------------------------------------------------- the command line
def test_the_command_line_knows_a_graph_of_models(tmp_path):
    with ModelGraph(tmp_path / "g") as graph:
        grow(graph, Trainer())
    found = run_json("status", tmp_path / "g")
    assert found["models"] == {"total": 5, "kinds": {"aggregate": 1, "initial": 1, "trained": 3}}
    assert (found["clients"], found["checkpoints"]["count"], found["rounds"]) == (2, 5, 3)
    assert run_json("lineage", tmp_path / "g")["models"] == 5
    lines = run_lines("lineage", tmp_path / "g", "--affected-by", "client:1")
    assert [line["name"] for line in lines] == ["right", "mean", "last"]
    picture = tmp_path / "graph.svg"
    run("lineage", tmp_path / "g", "--affected-by", "client:1", "--picture", picture)
    assert os.path.getsize(picture) > 1000
    assert run_json("checkpoints", "verify", tmp_path / "g")["ok"]
    assert run_json("audit", "verify", tmp_path / "g")["ok"]


def test_the_command_line_knows_what_was_forgotten_in_a_graph(tmp_path):
    affected, update = ("right", "mean", "last"), runs.update()
    chosen = Candidate(0.5, 0.25, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, True, True)
    with ModelGraph(tmp_path / "g") as graph:
        graph.grow(DIAMOND, lambda m: runs.state(0), lambda m, start: start)
        updates = dict.fromkeys(affected, update)
        found = Found(ForgetRequest((3,)), ("right",), affected, ("last",), {}, chosen, updates)
        assert found.commit(graph) == 3
        left = graph.state("left")
        for name, tensor in apply_update(left, update).items():
            assert torch.equal(tensor, graph.state("right")[name])
        assert torch.equal(left["z.weight"], runs.state(0)["z.weight"])
    lines = run_lines("lineage", tmp_path / "g", "--affected-by", "class:3")
    assert [line["name"] for line in lines] == list(affected)
    (operation,) = run_json("status", tmp_path / "g")["operations"]
    assert [operation[k] for k in ("classes", "threshold", "dampening", "checkpoints", "done")] == [
        [3], 0.5, 0.25, 3, True,
    ]  # fmt: skip
    assert run_json("checkpoints", "verify", tmp_path / "g")["ok"]
    assert run_json("audit", "verify", tmp_path / "g")["ok"]
