from __future__ import annotations

import math

import pytest
import torch
from cases_graph import Trainer, same, state
from hypothesis import given, settings
from hypothesis import strategies as st
from references_graph import slow_average
from torch import nn

from fl_unlearn import ModelGraph, PlannedModel
from fl_unlearn.model_graph import average
from fl_unlearn.types import (
    CorruptCheckpointError,
    LineageError,
    ModelMismatchError,
)

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
        # A mean of whole numbers that lies between two, but for its last bit, may be rounded to either.
        atol = 1e-12 if tensor.is_floating_point() else 1
        torch.testing.assert_close(tensor, slow[name], rtol=1e-2 if tensor.itemsize == 2 else 1e-6, atol=atol)


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
    for weights in ((0.0, 0.0), (-1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(LineageError, match="weight of a model must be a finite number above 0"):
            average([(state(0), weight) for weight in weights])
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
