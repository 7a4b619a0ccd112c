"""One experiment: train the graph, retrain it without the forget set, forget by each method, measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fl_unlearn.files import write_atomically
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import ClassScores, StateDict
from fl_unlearn.verify import score_state
from simulations.inheritance.commit import refuse_committed
from simulations.inheritance.config import Config, ConfigError
from simulations.inheritance.methods import METHODS, Applied, Bench, Tell, methods_of
from simulations.inheritance.results import BEFORE, RETRAINED, Result, Row, Spent
from simulations.inheritance.tasks import train_settings
from simulations.inheritance.world import World
from strategies.client import batches_of
from strategies.contract import Federation, State


class Experiment:
    """One experiment in a folder; what is there already is not made again.

    Args:
        world: What the config makes.
        federation: The owners; they know the request.
        out: The folder.
        tell: Told what is done next.

    Raises:
        ConfigError: If the folder holds another experiment.
    """

    def __init__(self, world: World, federation: Federation, out: Path, tell: Tell = print) -> None:
        self.world, self.federation, self.out, self.tell = world, federation, out, tell
        methods_of(world.config.methods)
        out.mkdir(parents=True, exist_ok=True)
        _claim(out / "config.json", trained_like(world.config))

    def train(self) -> None:
        """Train every model of the graph.

        Raises:
            ConfigError: If the models there have forgotten for good.
        """
        with ModelGraph(self.out / "models") as graph:
            refuse_committed(graph, self.out)
            self._grow(graph, self.world.scenario.models, "train", "train")

    def retrain(self) -> None:
        """Train every affected model again without what is to be forgotten; the others are copied."""
        affected = set(self.world.scenario.affected())
        with ModelGraph(self.out / "models") as graph, ModelGraph(self.out / "retrained") as again:
            for model in self.world.scenario.models:
                if model.name not in affected and model.name not in again:
                    again.register(
                        model.name, graph.state(model.name), parents=model.parents, owner=model.owner
                    )
            self._grow(again, self.world.scenario.models, "retained", "retrain")

    def _grow(self, graph: ModelGraph, plan: Sequence[PlannedModel], part: str, what: str) -> None:
        positions = {model.name: i for i, model in enumerate(plan)}
        world, seconds = self.world, self.seconds()

        def train(model: PlannedModel, start: State) -> StateDict:
            assert model.owner is not None
            settings = train_settings(world.config, model, part, world.head, positions[model.name])
            answer = self.federation.ask("inheritance.train", {"model": start}, settings, [model.owner])
            seconds.setdefault(what, {})[model.name] = answer[model.owner].seconds
            self._keep("seconds.json", seconds)
            return answer[model.owner].tensors["model"]

        graph.grow(
            plan,
            lambda model: world.initial_state(),
            train,
            examples={o: c[part] for o, c in self.federation.clients.items()},
            progress=lambda done, of, name: self.tell(f"{what}: {name} ({done + 1} of {of})"),
        )

    def seconds(self) -> dict[str, dict[str, float]]:
        """``train`` and ``retrain``: model to its owner's computing time."""
        path = self.out / "seconds.json"
        found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def run(self, *, retrain: bool = True) -> Result:
        """Everything that is not there yet: train, retrain, forget by each method, measure.

        Args:
            retrain: Whether the affected models are retrained, which takes about as long as training them.
        """
        self.train()
        if retrain:
            self.retrain()
        scenario, spent = self.world.scenario, {}
        with ModelGraph(self.out / "models") as graph:
            rows = self.measure(BEFORE, graph.state)
            for name in methods_of(self.world.config.methods):
                applied, own = self.forget(name, graph)
                rows += own
                spent[name] = Spent(
                    applied.seconds, applied.wall, applied.rounds, applied.facts, applied.refused
                )
        if retrain:
            with ModelGraph(self.out / "retrained") as again:
                rows += self.measure(RETRAINED, again.state)
        seconds = self.seconds()
        result = Result(
            self.world.config.to_mapping(),
            {"scenario": scenario.about, "data": self.world.bundle.about},
            scenario.forget,
            tuple(scenario.affected()),
            tuple(rows),
            seconds.get("train", {}),
            seconds.get("retrain", {}),
            spent,
        )
        result.save(self.out)
        return result

    def forget(self, method: str, graph: ModelGraph) -> tuple[Applied, list[Row]]:
        """Forget by one method, and measure every affected model; the graph stays as it is."""
        applied = METHODS[method](Bench(self.world, self.federation, graph, self.tell))
        return applied, self.measure(method, lambda name: applied.state(graph, name))

    def measure(self, method: str, state: Callable[[str], StateDict]) -> list[Row]:
        """Measure every affected model of one method."""
        known, model, rows = self.world.scenario.known(), self.world.build_model(), []
        test = self.world.bundle.test
        names = self.world.scenario.affected() if method != BEFORE else list(known)
        for name in names:
            scores = score_state(model, state(name), batches_of(test.samples))
            rows.append(row_of(name, method, scores, known[name], self.world.scenario.forget))
        return rows

    def _keep(self, name: str, value: object) -> None:
        write_atomically(self.out / name, json.dumps(value, indent=1).encode())


def row_of(model: str, method: str, scores: ClassScores, known: frozenset[int], forget: Sequence[int]) -> Row:
    """A model's accuracies over the labels it knows."""
    forgotten, others = known & set(forget), known - set(forget)
    unknown = set(scores.total)
    return Row(
        model,
        method,
        scores.without(unknown - forgotten).accuracy(),
        scores.without(unknown - others).accuracy(),
    )


def trained_like(config: Config) -> str:
    """What decides the trained graphs, as JSON."""
    free = {"methods", "scope", "merge_rule", "threshold", "reference_share", "calibration_samples"}
    free |= {"paper_threshold", "paper_divisor", "data_root"}
    return json.dumps({k: v for k, v in asdict(config).items() if k not in free}, sort_keys=True)


def _claim(path: Path, text: str) -> None:
    if not path.is_file():
        path.write_text(text)
    elif path.read_text() != text:
        raise ConfigError(f"{path.parent} holds another experiment: {path.read_text()}; name another --out")
