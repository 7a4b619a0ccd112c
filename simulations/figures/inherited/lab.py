"""One experiment that pictures are drawn from: its graph is trained once, whatever is then tried on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import UnlearnSettings
from simulations.compare.local import LocalFederation
from simulations.figures.inherited.points import Point, Points
from simulations.figures.inherited.remembering import Remembering
from simulations.inheritance.commit import refuse_committed
from simulations.inheritance.config import Config
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.folder import MODELS, POINTS, finished
from simulations.inheritance.methods import Applied, Bench, ours, settings_of
from simulations.inheritance.progress import Tell
from simulations.inheritance.results import Result, Row
from simulations.inheritance.world import World
from simulations.scenarios.contract import Scenario


@dataclass(frozen=True)
class Trial:
    """A way to forget that is tried on a graph.

    Attributes:
        label: Its name, in progress and among what was measured of the graph.
        what: Everything that decides it, beside the graph.
        make: Makes the updates.
    """

    label: str
    what: Mapping[str, Any]
    make: Callable[[Bench], Applied]


@dataclass(frozen=True)
class Lab:
    """One experiment.

    Attributes:
        name: What tables and pictures call it.
        config: The experiment.
        folder: Where the graph and everything measured of it are; that of `simulations.inheritance`.
        tell: Told what is done next.
    """

    name: str
    config: Config
    folder: Path
    tell: Tell = print

    @cached_property
    def world(self) -> World:
        """Scenario, data and model."""
        return World(self.config)

    @property
    def scenario(self) -> Scenario:
        """The graph as planned."""
        return self.world.scenario

    @cached_property
    def federation(self) -> LocalFederation:
        """The owners, in this process."""
        return LocalFederation(list(self.world.clients.values()), self.world.request)

    @cached_property
    def remembering(self) -> Remembering:
        """The same owners, not asked twice for the same Fisher sums."""
        return Remembering(self.federation)

    @cached_property
    def experiment(self) -> Experiment:
        """What trains and measures."""
        return Experiment(self.world, self.federation, self.folder, self._tell)

    @cached_property
    def settings(self) -> UnlearnSettings:
        """Ours, as the config says it."""
        return settings_of(self.config, self.world.head)

    def _tell(self, text: str) -> None:
        self.tell(f"{self.name}: {text}")

    def result(self) -> Result:
        """Everything before, after each method, and retrained: read, or trained and measured."""
        return finished(self.folder, self.config) or self.experiment.run()

    def points(self, trials: Sequence[Trial], *, remember: bool = True) -> list[Point]:
        """Ways to forget, measured on every affected model of the graph; what was measured is kept.

        Args:
            trials: The ways.
            remember: Whether Fisher sums are asked for once for all of them; ``seconds`` is of no use then.

        Returns:
            What was found of each, in their order.
        """
        self.result()  # trains what is missing
        points = Points(self.folder / POINTS)
        federation = self.remembering if remember else self.federation
        with ModelGraph(self.folder / MODELS) as graph:
            trained = graph.umig.digest(1, len(graph.umig))
            keys = [{**t.what, "graph": trained, "remembered": remember} for t in trials]
            made: dict[str, Applied] = {}
            if any(points.get(key) is None for key in keys):
                refuse_committed(self.folder)
            for i, (trial, key) in enumerate(zip(trials, keys, strict=True), start=1):
                if points.get(key) is None:
                    self._tell(f"{trial.label} ({i} of {len(trials)})")
                    made[trial.label] = trial.make(Bench(self.world, federation, graph, lambda text: None))
            accepted = {label: applied for label, applied in made.items() if not applied.refused}
            rows = self.experiment.measure(graph, accepted) if accepted else []
        points.put(
            (key, _point(made[trial.label], [r for r in rows if r.method == trial.label]))
            for trial, key in zip(trials, keys, strict=True)
            if trial.label in made
        )
        return [point for key in keys if (point := points.get(key)) is not None]


def _point(applied: Applied, rows: Sequence[Row]) -> Point:
    return Point(
        tuple(rows),
        applied.seconds,
        {name: update.threshold for name, update in applied.updates.items()},
        {name: update.dampening for name, update in applied.updates.items()},
        applied.refused,
    )


def fixed(settings: UnlearnSettings, threshold: float) -> UnlearnSettings:
    """Settings with this threshold, taken whatever calibration would say to it."""
    # With these tolerances every candidate passes, so one sample to score it on is as good as any.
    return replace(
        settings, threshold=threshold, forget_tolerance=1.0, max_retain_drop=1.0, calibration_samples=1
    )


def trial_of_ours(label: str, settings: UnlearnSettings) -> Trial:
    """Ours with these settings."""
    return Trial(label, decided_by("ours", settings), lambda bench: ours(bench, settings))


def decided_by(method: str, settings: UnlearnSettings) -> dict[str, Any]:
    """What a way to forget is kept under."""
    return {"method": method, **asdict(settings)}
