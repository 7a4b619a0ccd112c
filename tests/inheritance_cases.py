"""Small experiments on digits, whose federations can be made to fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fl_unlearn.model_graph import ModelGraph
from simulations.compare.local import LocalFederation
from simulations.inheritance.config import Config
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.world import World

TINY = Config(
    model="mlp",
    samples=400,
    test_samples=200,
    epochs=3,
    first_epochs=8,
    lr=0.1,
    batch_size=16,
    calibration_samples=40,
    threshold=3.0,
    paper_threshold=2.0,
)


class Stopped(Exception):  # noqa: N818
    """Stands for a killed process."""


class Stopping(LocalFederation):
    """A federation that is killed at its n-th question, and counts the questions by task."""

    def __init__(self, world: World, at: int | None = None) -> None:
        super().__init__(list(world.clients.values()), world.request)
        self.asked: list[str] = []
        self.at = at

    def ask(self, task, tensors=None, settings=None, clients=None):
        if len(self.asked) == self.at:
            raise Stopped
        self.asked.append(task)
        return super().ask(task, tensors, settings, clients)


def experiment(folder: Path, at: int | None = None, **changes) -> Experiment:
    """An experiment that is killed at its n-th question, if any."""
    world = World(replace(TINY, **changes))
    return Experiment(world, Stopping(world, at), folder, tell=lambda text: None)


def states(folder: Path) -> dict:
    """Model to its values, of a graph's folder."""
    with ModelGraph(folder) as graph:
        return {node.name: graph.state(node.name) for node in graph.umig.nodes()}
