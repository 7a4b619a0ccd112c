"""Strategies on every affected model of a graph."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import strategies
from fl_unlearn.model_graph import ModelGraph
from simulations.compare.local import LocalFederation
from simulations.inheritance import node_strategies
from simulations.inheritance.config import Config
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.methods import METHODS, Bench
from simulations.inheritance.node_history import (
    NodeHistory,
    Some,
    asked_about,
    last_models,
    own_update,
    start_of,
    training_of,
)
from simulations.inheritance.node_strategies import (
    GRAPH_METHODS,
    NEWEST_FIRST,
    NO_HISTORY,
    forget_in_all,
)
from simulations.inheritance.world import World, world_of
from strategies.contract import ALL_TARGETS, Outcome, Strategy
from strategies.errors import StrategyError
from strategies.mask import Mask
from strategies.training import fedavg

CONFIG = Config(dataset="digits", samples=400, model="mlp", epochs=8, calibration_samples=20)
AFFECTED = ["r1", "r2", "r3", "r4"]


@lru_cache
def trained() -> tuple[World, Path]:
    """The diamond on digits: d, s -> r1 -> r2; d, r2 -> r3; r1, r2 -> r4. Do not write to it."""
    folder = Path(tempfile.mkdtemp(prefix="fl-unlearn-nodes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    world = world_of(CONFIG)
    Experiment(world, federation(world), folder, lambda text: None).train()
    return world, folder / "models"


def federation(world: World) -> LocalFederation:
    return LocalFederation(list(world.clients.values()), world.request)


@pytest.fixture
def bench():
    world, folder = trained()
    with ModelGraph(folder) as graph:
        yield Bench(world, federation(world), graph, lambda text: None)


def owners(world: World, *models: str) -> list[str]:
    """Who trained these models: one for d, one for s, one for r1 and r2, one for r3 and r4."""
    owner = {m.name: m.owner for m in world.scenario.models}
    return [owner[name] for name in models]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@dataclass(frozen=True)
class Fake(Strategy):
    """Adds 1 to what it would restart from; fails, is refused or breaks on the models that it is told to."""

    name: ClassVar[str] = "fake"
    paper: ClassVar[str] = "none"
    targets: ClassVar[frozenset] = ALL_TARGETS
    needs: ClassVar[frozenset] = frozenset()

    fails: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    restarts: bool = False

    def unlearn(self, federation, history):
        federation.ask("inheritance.counts")
        if history._name in self.fails:
            raise StrategyError("this one not")
        if history._name in self.breaks:
            raise RuntimeError("shapes do not fit")
        if history._name in self.refuses:
            return Outcome(history.current(), refused="too costly")
        state = history.initial() if self.restarts else history.current()
        return Outcome({n: t + 1 for n, t in state.items()}, facts={"of": history._name})


class NeedsHistory(Fake):
    name: ClassVar[str] = "needs-history"
    needs: ClassVar[frozenset] = frozenset(("history",))


@pytest.mark.parametrize("name", [n for n in strategies.STRATEGIES if n != "retrain"])
def test_every_strategy_runs_on_a_graph_which_stays_as_it_is(bench, name):
    before = {n: bench.graph.state(n) for n in AFFECTED}
    found = forget_in_all(bench, strategies.get(name), round_epochs=1)
    assert list(found.states) == AFFECTED
    if name not in GRAPH_METHODS:  # whether these find an update depends on the models
        assert not found.failed
    once = name in GRAPH_METHODS or name in NEWEST_FIRST
    assert found.runs == (1 if once else 4)
    assert (found.cost.rounds == 0) == (name == "mask")
    assert (found.cost.client_seconds == 0) == (name == "mask")
    assert found.cost == bench.federation.cost
    assert all(same(bench.graph.state(n), before[n]) for n in AFFECTED)
    assert all(found.states[n].keys() == before[n].keys() for n in AFFECTED)


def test_mask_is_the_mask_of_each_model(bench):
    found = forget_in_all(bench, Mask())
    for name in AFFECTED:
        expected = bench.graph.state(name)
        head = bench.world.head
        expected[f"{head}.weight"][0], expected[f"{head}.bias"][0] = 0.0, -1e4
        assert same(found.states[name], expected)


def test_fine_tuning_is_that_of_each_model_on_the_owners_behind_it(bench):
    found = forget_in_all(bench, strategies.get("fine-tune"), round_epochs=3)
    again = forget_in_all(bench, strategies.get("fine-tune"), round_epochs=3)
    for name in AFFECTED:
        behind = owners(bench.world, *(("d", "s", "r1") if name in ("r1", "r2") else ("d", "s", "r1", "r3")))
        expected = fedavg(
            bench.federation, bench.graph.state(name), training_of(CONFIG), rounds=2, first=2, lr=0.03,
            epochs=1, clients=behind,
        )  # fmt: skip
        assert same(found.states[name], expected)
        assert same(found.states[name], again.states[name])


def test_who_is_asked(bench):
    a, b, c, e = owners(bench.world, "d", "s", "r1", "r3")
    assert asked_about(bench.graph, "r2", "behind") == [a, b, c]
    assert asked_about(bench.graph, "r2", "own") == [c]
    assert asked_about(bench.graph, "d", "behind") == [a]
    many, few = (forget_in_all(bench, strategies.get("fine-tune"), asked=x).cost for x in ("behind", "own"))
    assert many.rounds == few.rounds == 8
    assert many.bytes_up == few.bytes_up * (3 + 3 + 4 + 4) / 4
    some = Some(bench.federation, [c, a])
    assert list(some.clients) == list(some.ask("inheritance.counts")) == [a, c]
    assert some.cost is bench.federation.cost
    with pytest.raises(StrategyError, match=f"no client '{e}' behind this model: they are {a}, {c}"):
        some.ask("inheritance.counts", clients=[e])


def test_what_a_strategy_knows_of_the_training(bench):
    graph, world = bench.graph, bench.world
    d, r2 = graph.state("d"), graph.state("r2")
    moved = {n: t + 2 for n, t in r2.items()}
    mean = {n: (d[n].double() + moved[n].double()).div(2).to(d[n].dtype) for n in d}
    assert same(start_of(world, graph, "r3", {"r2": moved}), mean)
    assert same(start_of(world, graph, "init", {}), world.initial_state())
    updates = own_update(graph, "r3", owners(world, "r3"))
    history = NodeHistory(world, graph, "r3", training_of(CONFIG, 7), lambda: moved, updates)
    assert same(history.initial(), moved)
    assert same(history.current(), graph.state("r3"))
    assert same(history.global_model(0), start_of(world, graph, "r3", {}))
    assert same(history.global_model(1), history.current())
    assert (history.rounds, history.has_updates, history.training.epochs) == ((1,), True, 7)
    assert training_of(CONFIG).epochs == 8


def test_the_updates_of_a_graph(bench):
    graph, count = bench.graph, bench.federation.clients
    a, b, c, e = owners(bench.world, "d", "s", "r1", "r3")
    own = own_update(graph, "r4", [a, e])
    assert list(own) == [e]
    assert same(own[e][0], graph.state("r4"))
    assert own[e][1] == count[e]["train"]
    assert own_update(graph, "r4", [a]) == own_update(graph, "init", [a]) == {}
    last = last_models(graph, "r4", [a, b, c, e])
    for owner, name in {a: "d", b: "s", c: "r2", e: "r4"}.items():
        assert same(last[owner][0], graph.state(name))
    assert set(last_models(graph, "r1", [a, c])) == {a, c}


def test_a_model_that_fails_is_reported_and_the_rest_goes_on(bench):
    found = forget_in_all(bench, Fake(fails=("r2",), refuses=("r3",), breaks=("r4",)))
    assert found.failed == {
        "r2": "this one not",
        "r3": "refused: too costly",
        "r4": "RuntimeError: shapes do not fit",
    }
    assert (found.runs, found.cost.rounds, found.facts) == (4, 4, {"of": "r1"})
    for name in AFFECTED:
        assert same(found.states[name], bench.graph.state(name)) == (name != "r1")


def test_what_restarts_starts_from_parents_that_have_forgotten(bench):
    found = forget_in_all(bench, Fake(restarts=True))
    expected = start_of(bench.world, bench.graph, "r4", {n: found.states[n] for n in ("r1", "r2")})
    assert same(found.states["r4"], {n: t + 1 for n, t in expected.items()})
    found = forget_in_all(bench, Fake(restarts=True, fails=("r2",)))
    assert list(found.failed) == ["r2", "r3", "r4"]
    assert found.failed["r3"] == "it starts from r2, which could not be made to forget"


@pytest.mark.parametrize(("name", "asked", "epochs"), [("fake", 0, 3), ("fake", 5, 5), ("federaser", 5, 3)])
def test_rounds_have_the_epochs_that_each_model_was_trained_for(bench, name, asked, epochs):
    several = replace(bench, world=World(replace(CONFIG, scenario="several", epochs=2, first_epochs=3)))
    work = node_strategies._Work(several, SimpleNamespace(name=name), "behind", asked)
    assert work.training("r1").epochs == epochs
    assert work.training("r4").epochs == (epochs if epochs == 5 else 2)


def test_a_mean_that_nobody_trained_is_replayed_as_the_mean(tmp_path):
    world = world_of(replace(CONFIG, scenario="parallel", epochs=1))
    Experiment(world, federation(world), tmp_path, lambda text: None).train()
    with ModelGraph(tmp_path / "models") as graph:
        bench = Bench(world, federation(world), graph, lambda text: None)
        found = forget_in_all(bench, strategies.get("federaser"))
        (mean,) = [m for m in world.scenario.models if len(m.parents) > 1 and m.owner is None]
        assert same(found.states[mean.name], start_of(world, graph, mean.name, found.states))
        assert not same(found.states[mean.name], graph.state(mean.name))
    assert not found.failed
    assert found.cost.rounds == found.runs == len(mean.parents)


def test_ours_is_the_method_for_graphs(bench):
    applied = METHODS["ours"](bench)
    found = forget_in_all(bench, strategies.get("fiun"))
    assert bool(applied.refused) == bool(found.failed)
    assert all(same(found.states[n], applied.state(bench.graph, n)) for n in AFFECTED)
    assert found.cost.rounds == applied.rounds


def test_a_refusal_of_a_method_for_graphs_leaves_all_models(bench, monkeypatch):
    def method(bench):
        raise StrategyError("no")

    monkeypatch.setitem(METHODS, "ours", method)
    found = forget_in_all(bench, strategies.get("fiun"))
    assert found.failed == dict.fromkeys(AFFECTED, "no")
    assert all(same(found.states[n], bench.graph.state(n)) for n in AFFECTED)


def test_what_is_not_applicable_says_so(bench):
    assert forget_in_all(bench, NeedsHistory()).failed == dict.fromkeys(AFFECTED, NO_HISTORY)
    with pytest.raises(StrategyError, match=r"retrained by Experiment\.retrain"):
        forget_in_all(bench, strategies.get("retrain"))
