"""One experiment: train the graph, retrain it without the forget set, forget by each method, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import ClassScores, StateDict, UnlearnError
from fl_unlearn.verify import score_candidates
from simulations.inheritance.checks import check, check_counts
from simulations.inheritance.commit import refuse_committed
from simulations.inheritance.config import Config
from simulations.inheritance.folder import (
    APPLIED,
    MODELS,
    RETRAINED_MODELS,
    SECONDS,
    claim,
    key_of,
)
from simulations.inheritance.kept import Measured, load_applied, read_json, save_applied, write_json
from simulations.inheritance.methods import METHODS, Applied, Bench
from simulations.inheritance.progress import Progress, Tell
from simulations.inheritance.results import BEFORE, RETRAINED, Result, Row, Spent
from simulations.inheritance.tasks import train_settings
from simulations.inheritance.world import World
from strategies.client import batches_of
from strategies.contract import Federation, State
from strategies.tasks import Answer


class TrainingError(UnlearnError, ValueError):
    """A model that cannot be trained."""


class Experiment:
    """One experiment in a folder; what is there already is not made again.

    Args:
        world: What the config makes.
        federation: The owners; they know the request.
        out: The folder.
        tell: Told what is done next.

    Raises:
        ConfigError: If the config makes no sense, or the folder holds another experiment.
        UnlearnError, ValueError: As `checks.check`.
    """

    def __init__(self, world: World, federation: Federation, out: Path, tell: Tell = print) -> None:
        self.world, self.federation, self.out, self.tell = world, federation, out, tell
        check(world)
        check_counts(world, federation.clients)
        claim(out, world.config)

    def run(self, *, retrain: bool = True) -> Result:
        """Everything that is not there yet: train, retrain, forget by each method, measure.

        Args:
            retrain: Whether the affected models are retrained, which takes about as long as training them.

        Raises:
            TrainingError: If a training diverged.
        """
        self.train()
        if retrain:
            self.retrain()
        with ModelGraph(self.out / MODELS) as graph:
            applied = {name: self.forget(name, graph) for name in self.world.config.method_names()}
            rows = self.measure(graph, applied)
            parameters = sum(t.numel() for t in graph.state(rows[0].model).values())
        if retrain:
            rows += self.measure_retrained()
        seconds, scenario, bundle = self.seconds(), self.world.scenario, self.world.bundle
        result = Result(
            self.world.config.to_mapping(),
            {"scenario": scenario.about, "data": bundle.about},
            scenario.forget,
            tuple(scenario.affected()),
            tuple(rows),
            seconds.get("train", {}),
            seconds.get("retrain", {}) if retrain else {},
            {n: Spent(a.seconds, a.wall, a.rounds, a.facts, a.refused) for n, a in applied.items()},
            passes_of(scenario.models, self.world.config),
            {
                "models": len(scenario.models),
                "affected": len(scenario.affected()),
                "owners": len(scenario.owners),
                "train-samples": len(bundle.train.labels),
                "test-samples": len(bundle.test.labels),
                "parameters": parameters,
            },
        )
        result.save(self.out)
        return result

    # ------------------------------------------------------------------ training
    def train(self) -> None:
        """Train every model of the graph.

        Raises:
            ConfigError: If the models there have forgotten for good.
        """
        refuse_committed(self.out)
        with ModelGraph(self.out / MODELS) as graph:
            self._grow(graph, self.world.scenario.models, "train", "train")

    def retrain(self) -> None:
        """Train every affected model again without what is to be forgotten; the others are copied."""
        affected = set(self.world.scenario.affected())
        with ModelGraph(self.out / MODELS) as graph, ModelGraph(self.out / RETRAINED_MODELS) as again:
            for model in self.world.scenario.models:
                if model.name not in affected and model.name not in again:
                    again.register(
                        model.name, graph.state(model.name), parents=model.parents, owner=model.owner
                    )
            self._grow(again, self.world.scenario.models, "retained", "retrain")

    def _grow(self, graph: ModelGraph, plan: Sequence[PlannedModel], part: str, what: str) -> None:
        positions = {model.name: i for i, model in enumerate(plan)}
        world, seconds, passes = self.world, self.seconds(), passes_of(plan, self.world.config)
        sizes = {owner: counts[part] for owner, counts in self.federation.clients.items()}
        work = {m.name: float(sizes[m.owner] * passes[m.name]) if m.owner else 0.0 for m in plan}
        progress = Progress(what, work, self.tell)
        for model in plan:
            if model.name in graph:
                progress.skip(model.name)

        def train(model: PlannedModel, start: State) -> StateDict:
            assert model.owner is not None
            progress.begin(model.name)
            settings = train_settings(world.config, model, part, positions[model.name], passes[model.name])
            answer = self.federation.ask("inheritance.train", {"model": start}, settings, [model.owner])
            _check_finite(model, answer[model.owner], world.config)
            seconds.setdefault(what, {})[model.name] = answer[model.owner].seconds
            write_json(self.out / SECONDS, seconds)
            return answer[model.owner].tensors["model"]

        graph.grow(plan, lambda model: world.initial_state(), train, examples=sizes)

    def seconds(self) -> dict[str, dict[str, float]]:
        """``train`` and ``retrain``: model to its owner's computing time."""
        found: dict[str, dict[str, float]] = read_json(self.out / SECONDS) or {}
        return found

    # ------------------------------------------------------------------ forgetting
    def forget(self, method: str, graph: ModelGraph) -> Applied:
        """What a method makes of the graph, which stays as it is; what was kept is not made again."""
        folder, key = self.out / APPLIED, key_of(self.world.config)
        applied = load_applied(folder, method, key)
        if applied is None:
            self.tell(f"forget: {method}")
            applied = METHODS[method](Bench(self.world, self.federation, graph, self.tell))
            save_applied(folder, method, key, applied)
        return applied

    # ------------------------------------------------------------------ measuring
    def measure(self, graph: ModelGraph, applied: Mapping[str, Applied]) -> list[Row]:
        """Measure every model as it was, and every affected one after each method.

        All that is measured of one model is measured in one pass over its test samples.

        Args:
            graph: The trained models.
            applied: Method to what it made.
        """
        affected, measured = set(self.world.scenario.affected()), Measured(self.out)
        wanted: dict[str, dict[str, Applied | None]] = {
            model.name: {BEFORE: None, **(applied if model.name in affected else {})}
            for model in self.world.scenario.models
        }
        digests = {
            (name, method): made.updates[name].digest if made and name in made.updates else ""
            for name, methods in wanted.items()
            for method, made in methods.items()
        }
        progress = Progress("measure", dict.fromkeys(wanted, 1.0), self.tell)
        for name, methods in wanted.items():
            new = [m for m in methods if measured.get(name, m, digests[name, m]) is None]
            if not new:
                progress.skip(name)
                continue
            progress.begin(name)
            updates = [made.updates.get(name) if (made := methods[m]) else None for m in new]
            rows = self._scored(name, graph.state(name), dict(zip(new, updates, strict=True)))
            measured.add((digests[name, row.method], row) for row in rows)
        order = [(name, m) for m in (BEFORE, *applied) for name, methods in wanted.items() if m in methods]
        found = [measured.get(name, method, digests[name, method]) for name, method in order]
        return [row for row in found if row is not None]

    def measure_retrained(self) -> list[Row]:
        """Measure every affected model after retraining."""
        measured, names, rows = Measured(self.out), self.world.scenario.affected(), []
        progress = Progress("measure retrained", dict.fromkeys(names, 1.0), self.tell)
        with ModelGraph(self.out / RETRAINED_MODELS) as graph:
            for name in names:
                row = measured.get(name, RETRAINED, "")
                if row is None:
                    progress.begin(name)
                    (row,) = self._scored(name, graph.state(name), {RETRAINED: None})
                    measured.add([("", row)])
                else:
                    progress.skip(name)
                rows.append(row)
        return rows

    def _scored(self, name: str, state: StateDict, updates: Mapping[str, Any]) -> list[Row]:
        """A model under several updates, by the name of each, on test samples of the labels that it knows."""
        world, known = self.world, self.world.scenario.known()[name]
        model = world.build_model()
        model.load_state_dict(dict(state))
        test = world.bundle.test
        chosen = np.flatnonzero(np.isin(test.labels.numpy(), sorted(known)))
        scores = score_candidates(
            model.to(world.device), batches_of(test.rows(chosen)), list(updates.values()), head=world.head
        )
        return [
            row_of(name, method, own, known, world.scenario.forget)
            for method, own in zip(updates, scores, strict=True)
        ]


def row_of(model: str, method: str, scores: ClassScores, known: frozenset[int], forget: Sequence[int]) -> Row:
    """A model's accuracies over the labels it knows."""
    forgotten, others = sorted(known & set(forget)), sorted(known - set(forget))
    return Row(model, method, scores.accuracy(forgotten), scores.accuracy(others))


def passes_of(plan: Sequence[PlannedModel], config: Config) -> dict[str, int]:
    """How often training goes over the data, for each model that is trained.

    Args:
        plan: The models, parents before children.
        config: Of a model of which no ancestor was trained, ``first_epochs`` counts, where there are any.
    """
    touched: set[str] = set()
    passes = {}
    for model in plan:
        goes_on = any(parent in touched for parent in model.parents)
        if model.owner is not None:
            passes[model.name] = config.epochs if goes_on else config.first_epochs or config.epochs
        if model.owner is not None or goes_on:
            touched.add(model.name)
    return passes


def _check_finite(model: PlannedModel, answer: Answer, config: Config) -> None:
    bad = [name for name, t in answer.tensors["model"].items() if not bool(torch.isfinite(t).all())]
    if bad or "loss" not in answer.numbers:
        what = repr(bad[0]) if bad else "the loss"
        raise TrainingError(
            f"the training of {model.name} by {model.owner} diverged: {what} is no "
            f"longer finite; lower lr, which is {config.lr:g}"
        )
