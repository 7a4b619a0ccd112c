"""Runs every strategy on one graph, measures all affected models, and keeps what was found in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import strategies
from fl_unlearn.files import write_atomically
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import StateDict
from fl_unlearn.verify import score_state
from simulations.inheritance.config import ConfigError
from simulations.inheritance.experiment import Experiment, row_of
from simulations.inheritance.methods import Bench
from simulations.inheritance.node_history import Asked
from simulations.inheritance.node_strategies import RETRAIN, forget_in_all
from simulations.inheritance.results import BEFORE, RETRAINED, Row
from strategies.client import batches_of

FREE = ("methods", "data-root")
"""Keys of a config that decide nothing here."""


@dataclass(frozen=True)
class Measured:
    """What one strategy took for all affected models together, and left of them.

    Attributes:
        strategy: Its name.
        seconds: Computing time of all owners together; on a CPU, processor time.
        rounds: How often owners were asked and waited for.
        bytes_down: Tensors sent to owners, in bytes.
        bytes_up: Tensors sent by owners, in bytes.
        wall: Seconds from the first question to the last model; None: not known.
        runs: How often the strategy was run.
        rows: Accuracies of every affected model.
        failed: Model to why it was left as it was.
        facts: What the strategy says of its last run.
    """

    strategy: str
    seconds: float
    rounds: int
    bytes_down: int
    bytes_up: int
    wall: float | None
    runs: int
    rows: tuple[Row, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One graph, and how strategies are run on it.

    Attributes:
        experiment: The graph.
        folder: Where a JSON file for each strategy is kept; delete one to have it run again.
        asked: Whom a strategy may ask about a model.
        round_epochs: Local epochs in a round of a strategy; 0: those of the model.
        tell: Told what is done next.
    """

    experiment: Experiment
    folder: Path
    asked: Asked = "behind"
    round_epochs: int = 0
    tell: Callable[[str], None] = print

    def run(self, names: Sequence[str]) -> list[Measured]:
        """What there was before, retraining, and the named strategies; what is there is not run again.

        Raises:
            ConfigError: If the folder holds results of other settings.
            StrategyError: If there is no strategy of a name; before anything is trained.
        """
        for name in names:
            strategies.get(name)
        self._claim()
        self.experiment.train()
        self.experiment.retrain()
        done = [self._kept(BEFORE, self._before), self._kept(RETRAIN, self._retrained)]
        others = [n for n in names if n != RETRAIN]
        for number, name in enumerate(others, start=1):
            self.tell(f"[{number} of {len(others)}] {name}")
            done.append(self._kept(name, lambda name=name: self._forgotten(name)))  # type: ignore[misc]
        return done

    def _claim(self) -> None:
        config = self.experiment.world.config.to_mapping()
        own = {k: v for k, v in config.items() if k not in FREE}
        own |= {"asked": self.asked, "round-epochs": self.round_epochs}
        path = self.folder / "settings.json"
        if path.is_file() and (kept := json.loads(path.read_text())) != own:
            other = sorted(k for k in own.keys() | kept.keys() if own.get(k) != kept.get(k))
            raise ConfigError(
                f"{self.folder} holds results of other settings ({', '.join(other)} differ); name another "
                "--out, or delete it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(own, indent=1).encode())

    def _kept(self, name: str, make: Callable[[], Measured]) -> Measured:
        path = self.folder / f"{name}.json"
        if path.is_file():
            return measured_of(json.loads(path.read_text()))
        made = make()
        write_atomically(path, json.dumps(asdict(made), indent=1).encode())
        return made

    def _before(self) -> Measured:
        with ModelGraph(self.experiment.out / "models") as graph:
            return Measured(BEFORE, 0.0, 0, 0, 0, None, 0, self._rows(BEFORE, graph.state))

    def _retrained(self) -> Measured:
        """The graph's own retraining: each affected model once, at the owner that trained it."""
        world = self.experiment.world
        with ModelGraph(self.experiment.out / "retrained") as again:
            rows = self._rows(RETRAINED, again.state)
        affected, seconds = world.scenario.affected(), self.experiment.seconds()["retrain"]
        trained = [m.name for m in world.scenario.models if m.name in affected and m.owner is not None]
        size = sum(t.numel() * t.element_size() for t in world.initial_state().values())
        sent = size * len(trained)
        spent = sum(seconds[name] for name in trained)
        return Measured(RETRAIN, spent, len(trained), sent, sent, None, len(trained), rows)

    def _forgotten(self, name: str) -> Measured:
        experiment = self.experiment
        with ModelGraph(experiment.out / "models") as graph:
            bench = Bench(experiment.world, experiment.federation, graph, lambda text: self.tell(f"  {text}"))
            found = forget_in_all(
                bench, strategies.get(name), asked=self.asked, round_epochs=self.round_epochs
            )
            rows = self._rows(name, lambda model: found.states[model])
        cost = found.cost
        return Measured(
            name,
            cost.client_seconds,
            cost.rounds,
            cost.bytes_down,
            cost.bytes_up,
            found.wall,
            found.runs,
            rows,
            found.failed,
            found.facts,
        )

    def _rows(self, method: str, state: Callable[[str], StateDict]) -> tuple[Row, ...]:
        """Accuracies of every affected model, on test samples of the labels that it knows."""
        world = self.experiment.world
        known, test, model = world.scenario.known(), world.bundle.test, world.build_model()
        device, rows = next(iter(world.clients.values())).device, []
        for name in world.scenario.affected():
            chosen = np.flatnonzero(np.isin(test.labels.numpy(), sorted(known[name])))
            batches = batches_of(test.rows(chosen))
            scores = score_state(model.to(device), state(name), batches, device=device)
            rows.append(row_of(name, method, scores, known[name], world.scenario.forget))
        return tuple(rows)


def measured_of(plain: Mapping[str, Any]) -> Measured:
    """A `Measured` from its JSON."""
    return Measured(**{**plain, "rows": tuple(Row(**r) for r in plain["rows"])})
