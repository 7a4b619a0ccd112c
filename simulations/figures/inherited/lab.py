"""One experiment that pictures are drawn from: its graph is trained once, whatever is then tried on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_unlearn.dampen import apply_update
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import UnlearnSettings
from simulations.compare.local import LocalFederation
from simulations.figures.inherited.points import Point, Points
from simulations.figures.inherited.remembering import Remembering
from simulations.inheritance.config import Config
from simulations.inheritance.experiment import Experiment, trained_like
from simulations.inheritance.methods import Applied, Bench, Tell, settings_of
from simulations.inheritance.results import RETRAINED, Result
from simulations.inheritance.world import World
from simulations.scenarios.contract import Scenario
from strategies.contract import Federation, State

Make = Callable[[Bench], Sequence[Applied]]
"""A way to forget: what is applied to a graph, in this order."""


@dataclass(frozen=True)
class Lab:
    """One experiment.

    Attributes:
        name: What tables and pictures call it.
        config: The experiment.
        out: Folder of all experiments; this one gets its own in it, by name and by what decides the training.
        tell: Told what is done next.
    """

    name: str
    config: Config
    out: Path
    tell: Tell = print

    @property
    def folder(self) -> Path:
        """Where the graph and everything measured of it are."""
        return self.out / f"{self.name}-{hashlib.sha256(trained_like(self.config).encode()).hexdigest()[:8]}"

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
        return Experiment(
            self.world, self.federation, self.folder, lambda text: self.tell(f"{self.name}: {text}")
        )

    @cached_property
    def settings(self) -> UnlearnSettings:
        """Ours, as the config says it."""
        return settings_of(self.config, self.world.head)

    def with_config(self, **changes: Any) -> Lab:
        """The same experiment with other values; its own folder where these decide the training."""
        return replace(self, config=replace(self.config, **changes))

    def result(self) -> Result:
        """Everything before, after each method, and retrained: read, or trained and measured."""
        found = Result.load(self.folder)
        if (
            found is not None
            and _same(found.config, self.config)
            and any(r.method == RETRAINED for r in found.rows)
        ):
            return found
        return self.experiment.run()

    def point(self, what: Mapping[str, Any], make: Make, *, remember: bool = True) -> Point:
        """One way to forget, measured on every affected model of the graph; measured once.

        Args:
            what: Everything that decides it, beside the training.
            make: The way to forget.
            remember: Whether Fisher sums are asked for once for all ways; ``seconds`` is of no use then.
        """
        points = Points(self.folder / "points.json")
        found = points.get({**what, "costs": not remember})
        if found is None:
            self.result()  # trains what is missing
            found = self._measured(make, self.remembering if remember else self.federation)
            points.put({**what, "costs": not remember}, found)
        return found

    def _measured(self, make: Make, federation: Federation) -> Point:
        with ModelGraph(self.folder / "models") as graph:
            applied = make(Bench(self.world, federation, graph, lambda text: None))
            seconds = sum(a.seconds for a in applied)
            if refused := "; ".join(a.refused for a in applied if a.refused):
                return Point((), seconds, {}, {}, refused)
            rows = self.experiment.measure("tried", lambda name: _after(graph.state(name), name, applied))
            updates = [(name, u) for a in applied for name, u in a.updates.items()]
            thresholds = {name: u.threshold for name, u in updates}
            return Point(tuple(rows), seconds, thresholds, {name: u.dampening for name, u in updates})


def _after(state: State, name: str, applied: Sequence[Applied]) -> State:
    for one in applied:
        if name in one.updates:
            state = apply_update(state, one.updates[name])
    return state


def _same(found: Mapping[str, Any], config: Config) -> bool:
    """Whether a result is of this config, wherever its data was."""
    return {**found, "data-root": ""} == {**config.to_mapping(), "data-root": ""}


def fixed(settings: UnlearnSettings, threshold: float) -> UnlearnSettings:
    """Settings with this threshold, taken whatever calibration would say to it."""
    return replace(settings, threshold=threshold, forget_tolerance=1.0, max_retain_drop=1.0, force=True)


def decided_by(method: str, settings: UnlearnSettings) -> dict[str, Any]:
    """What a way to forget is kept under."""
    return {"method": method, **asdict(settings)}
