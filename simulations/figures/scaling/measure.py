"""One random graph: trained, made to forget, and measured before and after."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.graph_unlearning import Found, LocalOwners, find, spread
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import ForgetRequest
from fl_unlearn.verify import score_state
from simulations.quickstart.fl_unlearn_quickstart import task
from simulations.quickstart.fl_unlearn_quickstart.data import DataBundle, load
from simulations.scenarios.contract import Scenario
from simulations.scenarios.random_dag import random_dag
from simulations.scenarios.shares import share
from strategies.contract import State
from strategies.training import fit, seed_of, state_of

BATCH, BASE_EPOCHS = 32, 10

Tell = Callable[[str], None]


class RefusedError(Exception):
    """No update was good enough on the graph."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how; see the options of ``__main__``."""

    data: str = ""
    max_examples: int = 0
    epochs: int = 3
    lr: float = 0.05
    in_degree: float = 2.0
    share: float = 0.8
    owners: int = 5
    forget: Sequence[int] = (0,)
    retrain: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "retrain"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.lr > 0 and 0 < self.share < 1):
            raise ValueError(f"lr must be above 0, share between 0 and 1, got {self.lr:g} and {self.share:g}")

    @cached_property
    def bundle(self) -> DataBundle:
        """The data set."""
        name = "parquet" if self.data else "digits"
        return load(name, self.data, seed=self.seed, max_train=self.max_examples)

    def build(self) -> nn.Module:
        """The network; the same weights every time."""
        return task.build_model(self.bundle.image_shape, self.bundle.num_classes, seed=self.seed)


@dataclass
class Clock:
    """Seconds, by the wall and of the processor."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add what passes inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def measured(setting: Setting, affected: int, folder: Path, tell: Tell) -> dict[str, Any]:
    """One row: a graph with that many affected models; keys as `show.COLUMNS`, accuracies 0 to 1.

    Args:
        setting: What is measured.
        affected: How many models are to be affected.
        folder: Where the graph is trained; what is there already goes on.
        tell: Told what is done next.

    Raises:
        RefusedError: If no update was good enough.
        ScenarioError: If there is no such graph.
        ValueError: If none is to be affected, or the test pictures are of too few classes.
    """
    if affected < 1:
        raise ValueError(f"1 or more models must be affected, got {affected}")
    scenario = random_dag(
        max(affected + 1, ceil(affected / setting.share)),
        in_degree=setting.in_degree,
        owners=setting.owners,
        affected=affected,
        num_classes=setting.bundle.num_classes,
        forget=setting.forget,
        seed=setting.seed,
    )
    training = _Training(setting, scenario)
    names = scenario.affected()
    with ModelGraph(folder / "trained") as graph:
        training.grow(graph, tell)
        tell("measuring, and retraining some")
        before = training.accuracies(graph, names)
        one = training.retrain(graph, spread(names, setting.retrain))
    copy = folder / "unlearned"  # so that an interruption never leaves a graph that is half of either
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "trained", copy)
    with ModelGraph(copy) as graph:
        found, seconds = _forget(graph, training, tell)
        if list(found.affected) != names:
            raise RefusedError(f"{len(found.affected)} models are affected, the graph has {affected} such")
        tell("measuring again")
        after = training.accuracies(graph, names)
    row = {"affected": affected, "models": len(scenario.models), **_facts(found)}
    return row | seconds | _retraining(one, affected, seconds) | _accuracy(before, after)


def _forget(graph: ModelGraph, training: _Training, tell: Tell) -> tuple[Found, dict[str, float]]:
    """Find and commit the update; what was found, and the seconds it took."""
    owners = LocalOwners(training.setting.build, training.batches)
    asking, finding, applying = Clock(), Clock(), Clock()
    for name in ("counts", "fishers", "scores"):
        setattr(owners, name, asking.running()(getattr(owners, name)))
    with finding.running():
        found = find(graph, ForgetRequest(training.scenario.forget), owners, tell=tell)
    if found.refused:
        raise RefusedError(found.refused)
    with applying.running():
        found.commit(graph)
    return found, {
        "client_seconds": asking.wall,
        "server_seconds": finding.wall - asking.wall,
        "apply_seconds": applying.wall,
        "unlearn_seconds": finding.wall + applying.wall,
        "client_cpu_seconds": asking.cpu,
    }


class _Training:
    """How the models of one graph are trained, and on what."""

    def __init__(self, setting: Setting, scenario: Scenario) -> None:
        self.setting, self.scenario = setting, scenario
        train, test = setting.bundle.train, setting.bundle.test
        rows = share(scenario, train.labels.numpy(), seed=setting.seed)
        self.parts = {o: (train.images[at], train.labels[at]) for o, at in rows.items()}
        self.batches = {owner: _batches(*part) for owner, part in self.parts.items()}
        self.test = _batches(test.images, test.labels)
        self.order = {model.name: i for i, model in enumerate(scenario.models)}

    def grow(self, graph: ModelGraph, tell: Tell) -> None:
        """Train every model that is not there yet."""
        base = self.base()

        def progress(done: int, models: int, name: str) -> None:
            if done % max(1, models // 10) == 0:
                tell(f"training {name} ({done + 1} of {models})")

        graph.grow(self.scenario.models, lambda model: base, self.train, progress=progress)

    def base(self) -> State:
        """A network that never saw what is to be forgotten: all models without parents."""
        data = self.setting.bundle.train
        return self._fitted(self.setting.build(), data.images, data.labels, BASE_EPOCHS, True, 0)

    def train(self, model: PlannedModel, start: State, retained: bool = False) -> State:
        """One model's training on its owner's data, or on what of it is retained."""
        assert model.owner is not None
        net = self.setting.build()
        net.load_state_dict(start)
        seed = seed_of(self.setting.seed, 1, self.order[model.name])
        return self._fitted(net, *self.parts[model.owner], self.setting.epochs, retained, seed)

    def _fitted(self, net: nn.Module, x: Tensor, y: Tensor, epochs: int, retained: bool, seed: int) -> State:
        if retained:
            keep = ~torch.isin(y, torch.tensor(self.scenario.forget))
            x, y = x[keep], y[keep]
        order = torch.Generator().manual_seed(seed)
        batches = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, generator=order)
        optimizer = torch.optim.SGD(net.parameters(), lr=self.setting.lr, momentum=0.9, weight_decay=5e-4)
        fit(net, batches, optimizer, epochs=epochs)
        return state_of(net)

    def retrain(self, graph: ModelGraph, names: Sequence[str]) -> list[Clock]:
        """Train some models again on what is retained: how long each takes, its parents' mean included."""
        plan, clocks = {m.name: m for m in self.scenario.models}, []
        for name in names:
            clocks.append(Clock())
            with clocks[-1].running():
                self.train(plan[name], graph.start(plan[name].parents), retained=True)
        return clocks

    def accuracies(self, graph: ModelGraph, names: Sequence[str]) -> list[tuple[float, float]]:
        """On the forgotten and on the retained test pictures, model by model."""
        net, found, forget = self.setting.build(), list[tuple[float, float]](), self.scenario.forget
        for name in names:
            scores = score_state(net, graph.state(name), self.test)
            pair = scores.accuracy(forget), scores.accuracy(without=forget)
            if pair[0] is None or pair[1] is None:
                raise ValueError(f"there are no test pictures of {forget}, or of no other class")
            found.append((pair[0], pair[1]))
        return found


def _batches(x: Tensor, y: Tensor) -> list[Any]:
    return list(DataLoader(TensorDataset(x, y), 512))


def _facts(found: Found) -> dict[str, Any]:
    shared = found.shared
    chosen = "each its own" if shared is None else f"t = {shared.threshold:g}, lambda = {shared.dampening:g}"
    counts = {"roots": len(found.roots), "sources": len(found.sources), "scored": len(found.scored)}
    return counts | {"chosen": chosen}


def _retraining(one: Sequence[Clock], affected: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """What retraining some models took, and what it would take for all of them."""
    each, cpu = fmean(clock.wall for clock in one), affected * fmean(clock.cpu for clock in one)
    return {
        "retrained_models": len(one),
        "retrain_one_seconds": each,
        "retrain_seconds": affected * each,
        "ratio": affected * each / seconds["unlearn_seconds"],
        "retrain_cpu_seconds": cpu,
        "cpu_ratio": cpu / seconds["client_cpu_seconds"],
    }


def _accuracy(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]
) -> dict[str, float]:
    drops = [old[1] - new[1] for old, new in zip(before, after, strict=True)]
    return {
        "forget_before": fmean(f for f, _ in before),
        "forget_after": fmean(f for f, _ in after),
        "forget_after_worst": max(f for f, _ in after),
        "retain_before": fmean(r for _, r in before),
        "retain_after": fmean(r for _, r in after),
        "retain_drop_worst": max(drops),
    }
