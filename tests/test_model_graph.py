from __future__ import annotations

import itertools
import math
import os

import pytest
import runs
import torch
from cases_cli import run, run_json, run_lines
from crashes import killed_at
from hypothesis import given, settings
from hypothesis import strategies as st
from references_graph import slow_average
from torch import nn

from fl_unlearn import KeepPolicy, ModelGraph, PlannedModel, RunStore
from fl_unlearn.calibration import Candidate
from fl_unlearn.dampen import apply_update
from fl_unlearn.graph_unlearning import Found
from fl_unlearn.model_graph import average
from fl_unlearn.types import (
    CorruptCheckpointError,
    ForgetRequest,
    LineageError,
    ModelMismatchError,
    StoreError,
)

State = dict[str, torch.Tensor]
DIAMOND = [
    PlannedModel("base"),
    PlannedModel("left", ["base"], owner="0"),
    PlannedModel("right", ["base"], owner="1", trains="head"),
    PlannedModel("mean", {"left": 3, "right": 1}),
    PlannedModel("last", ["mean"], owner="0"),
]


def state(seed: int, classes: int = 3) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(classes, 4, generator=g),
        "a.half": torch.randn(5, generator=g).half(),
        "a.brain": torch.randn(5, generator=g).bfloat16(),
        "num_batches_tracked": torch.tensor(7 * seed),
        "mask": torch.rand(3, generator=g) > 0.5,
    }


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


class Trainer:
    """New weights, and a training that adds one; notes what it was asked for."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at, self.trained = fail_at, list[str]()

    def initial(self, model: PlannedModel) -> State:
        return state(0)

    def train(self, model: PlannedModel, start: State) -> State:
        if model.name == self.fail_at:
            raise RuntimeError("the machine was switched off")
        self.trained.append(model.name)
        return {n: t if t.dtype == torch.bool else t + 1 for n, t in start.items()}


def grow(graph: ModelGraph, trainer: Trainer, plan=DIAMOND, **options):
    return graph.grow(plan, trainer.initial, trainer.train, **options)


# --------------------------------------------------------------------------- the mean
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]


@st.composite
def models(draw):
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        values = [(torch.randn(2, 3, generator=g) * 40).to(d) for d in dtypes]
        found.append(({f"t{i}": v for i, v in enumerate(values)}, draw(st.integers(1, 64)) / 4))
    return found


@settings(max_examples=40)
@given(models())
def test_the_mean_matches_the_slow_reference(given_models):
    mean, slow = average(given_models), slow_average(given_models)
    assert list(mean) == list(slow)
    for name, tensor in mean.items():
        assert tensor.dtype == slow[name].dtype
        torch.testing.assert_close(
            tensor, slow[name], rtol=1e-2 if tensor.itemsize == 2 else 1e-6, atol=1e-12
        )


def test_known_means():
    def one(x, dtype):
        return {"x": torch.tensor([x], dtype=dtype)}

    ints = [(one(10, torch.int64), 1 / 3), (one(10, torch.int64), 1 / 3), (one(13, torch.int64), 1 / 3)]
    assert average(ints)["x"].tolist() == [11]
    assert average([(one(1.0, torch.bfloat16), 3.0), (one(5.0, torch.bfloat16), 1.0)])["x"].tolist() == [2.0]
    large = one(2**62 + 1, torch.int64)
    alone = average([(large, 0.1)])
    assert alone["x"].tolist() == [2**62 + 1]
    alone["x"] += 1
    assert large["x"].tolist() == [2**62 + 1]  # a copy


def test_models_that_have_no_mean():
    with pytest.raises(LineageError, match="no model to average"):
        average([])
    with pytest.raises(LineageError, match=r"same tensors: 'z.weight' is \[4, 4\] where \[3, 4\]"):
        average([(state(0), 1.0), (state(0, classes=4), 1.0)])
    for count in (1, 2):
        with pytest.raises(LineageError, match="'the mean': 1 of 1 values of 'x' are not finite"):
            average([({"x": torch.tensor([math.nan])}, 1.0), ({"x": torch.tensor([1.0])}, 1.0)][:count])


# --------------------------------------------------------------------------- register, start, derive
def test_start_is_a_copy_or_the_weighted_mean(tmp_path):
    with ModelGraph(tmp_path) as graph:
        for seed in range(3):
            graph.register(f"m{seed}", state(seed))
        assert same(graph.start(["m1"]), state(1))
        shares = {"m0": 1.0, "m1": 2.0, "m2": 5.0}
        slow = slow_average([(state(0), 1), (state(1), 2), (state(2), 5)])
        found = graph.start(shares)
        assert list(found) == list(state(0))
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, slow[name])
        with pytest.raises(LineageError, match="nothing to start from; register it"):
            graph.start(())
        with pytest.raises(LineageError, match="no node 'm3'"):
            graph.start(["m3"])


def test_what_is_registered_comes_back(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with ModelGraph(tmp_path) as graph:
        first = graph.register("first", model)
        worker = graph.register("worker", model, owner="w", examples=5, metadata={"lr": 0.1})
        both = graph.register("both", model.state_dict(), parents={"first": 1, "worker": 3})
        tuned = graph.register("tuned", model, parents=["both"], owner="v")
        nodes = first, worker, both, tuned
        assert [n.kind for n in nodes] == ["initial", "trained", "aggregate", "trained"]
        assert [n.round for n in nodes] == [0, 0, 1, 2]
        assert [n.owner for n in nodes] == [None, "w", None, "v"]
        assert (worker.examples, worker.metadata, tuned.metadata) == (5, {"lr": 0.1}, {})
        assert graph.umig.parents("both") == {"first": 0.25, "worker": 0.75}
        assert graph.owners_behind("both") == ["w"]
        assert graph.owners_behind("tuned") == ["v", "w"]
        assert graph.owners_behind("first") == []
        with torch.no_grad():
            model[0].weight.zero_()  # what was registered is a copy
    with ModelGraph(str(tmp_path)) as graph:
        assert list(graph.umig) == list(nodes)
        assert ("both" in graph, "neither" in graph) == (True, False)
        found = graph.state("first")
        assert list(found) == list(model.state_dict())
        assert found["0.weight"].abs().sum() > 0


def test_derive_averages_trains_and_does_nothing_twice(tmp_path):
    trainer, plan = Trainer(), PlannedModel("x")
    with ModelGraph(tmp_path) as graph:
        graph.register("a", state(0))
        graph.register("b", state(1))
        mean = graph.derive("mean", ["a", "b"])
        assert (mean.kind, mean.owner) == ("aggregate", None)
        assert same(graph.state("mean"), graph.start(["b", "a"]))
        node = graph.derive("next", ["mean"], lambda start: trainer.train(plan, start), owner="0", examples=4)
        assert (node.kind, node.owner, node.examples) == ("trained", "0", 4)
        assert torch.equal(graph.state("next")["z.weight"], graph.state("mean")["z.weight"] + 1)
        again = graph.derive("next", ["mean"], lambda start: trainer.train(plan, start), owner="0")
        assert (again, trainer.trained) == (node, ["x"])
        for parents, owner, message in (
            (
                ["a"],
                "0",
                r"recorded with {'parents': {'mean': 1.0}}, not with {'parents': {'a': 1.0}}",
            ),
            (["mean"], "1", r"{'owner': '0'}, not with {'owner': '1'}; models are never"),
        ):
            with pytest.raises(LineageError, match=message):
                graph.derive("next", parents, lambda start: start, owner=owner)
        with pytest.raises(LineageError, match="is recorded with"):
            graph.derive("mean", {"a": 0.4, "b": 0.6})
        with pytest.raises(LineageError, match="got no training and owner '1'"):
            graph.derive("other", ["a"], owner="1")
        with pytest.raises(LineageError, match="got a training and owner None"):
            graph.derive("other", ["a"], lambda start: start)
        assert len(graph.umig) == 4


def test_a_model_that_cannot_be_kept_leaves_no_trace(tmp_path):
    with ModelGraph(tmp_path) as graph:
        graph.register("a", state(0))
        broken = state(1)
        broken["a.half"][2:] = math.inf
        for change, error, message in (
            ({"name": "a"}, LineageError, "recorded already"),
            ({"name": ""}, LineageError, "non-empty text"),
            ({"parents": ["A"]}, LineageError, "no node 'A'"),
            ({"parents": {"a": -1.0}}, LineageError, "above 0"),
            ({"owner": ""}, LineageError, "owner of a planned model"),
            ({"examples": -1}, LineageError, "0 or more"),
            ({"metadata": {"x": object()}}, LineageError, "JSON"),
            ({"model": None}, LineageError, "'b' must be a module or its state_dict, got NoneType"),
            ({"model": {"x": 1.0}}, LineageError, "must hold tensors alone, 'x' is float"),
            ({"model": broken}, LineageError, "'b': 3 of 5 values of 'a.half' are not finite: training"),
            (
                {"model": state(1, classes=5)},
                ModelMismatchError,
                r"'b' differs from .*'z.weight' is \[5, 4\] where \[3, 4\].*over the union of the labels",
            ),
        ):
            with pytest.raises(error, match=message):
                graph.register(**{"name": "b", "model": state(1), **change})
        assert [n.name for n in graph.umig] == ["a"]
        assert graph.store.checkpoints.names() == {"a"}


def test_a_damaged_checkpoint_is_found_before_it_is_inherited(tmp_path):
    with ModelGraph(tmp_path) as graph:
        graph.register("a", state(0))
        path = graph.store.checkpoints.path("a")
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        for look in (lambda: graph.state("a"), lambda: graph.derive("b", ["a"])):
            with pytest.raises(CorruptCheckpointError, match="truncated or changed from outside"):
                look()
        path.unlink()
        with pytest.raises(CorruptCheckpointError, match="missing"):
            graph.start(["a"])
        assert "b" not in graph


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
