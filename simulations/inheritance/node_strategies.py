"""Any way to forget of `strategies`, on a whole graph of models: one affected model after another.

A strategy knows one federation and its final model. Here it is run once for each affected model, parents
before children: on the owners behind that model, from that model (`node_history`). Two kinds are run
otherwise, as they are meant:

- One whose `Outcome` has a ``change`` for other checkpoints answers for all models at once: it is run on the
  newest affected model, and the change is applied to the others.
- ``fiun`` and ``fiun-paper`` are methods for graphs (`methods.METHODS`), and run as such.

A model that is a mean of others and was trained on nobody's data is changed like all others, though making
it again from parents that have forgotten would be free; only what replays training (`REPLAYS`) does that. A
model that a strategy fails on stays as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from fl_unlearn.types import StateDict, UnlearnError
from simulations.inheritance.experiment import passes_of
from simulations.inheritance.methods import METHODS, Applied, Bench
from simulations.inheritance.node_history import (
    REPLAYS,
    UPDATES,
    Asked,
    NodeHistory,
    Some,
    asked_about,
    start_of,
    training_of,
)
from strategies.contract import Cost, Outcome, State, Strategy
from strategies.errors import StrategyError
from strategies.history import Training

log = logging.getLogger("fl_unlearn.simulations")

RETRAIN = "retrain"
"""Not run here: the graph's own retraining, `simulations.inheritance.experiment.Experiment.retrain`."""

GRAPH_METHODS = {"fiun": "ours", "fiun-paper": "paper"}
"""Strategies that are methods for graphs: name to method."""

NEWEST_FIRST = frozenset(("fiun-deep", "gradient-ascent-paper", "mask"))
"""Strategies that answer for all checkpoints. They are run on the newest affected model, where most of what
is to be forgotten has come together; all others parents before children."""

NO_HISTORY = "not applicable: it needs the clients' updates of every round, which a graph of models has not"


@dataclass(frozen=True)
class Forgotten:
    """What one strategy made of a graph.

    Attributes:
        states: Affected model to its values; of those in ``failed`` what they were.
        cost: What all questions to owners took together.
        wall: Seconds from the first question to the last model.
        runs: How often the strategy was run, whether or not it came to an end.
        failed: Affected model to why it was left as it is.
        facts: What a reader should know, of the last run that says something.
    """

    states: Mapping[str, State]
    cost: Cost
    wall: float
    runs: int
    failed: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


def forget_in_all(
    bench: Bench, strategy: Strategy, *, asked: Asked = "behind", round_epochs: int = 0
) -> Forgotten:
    """Run one strategy on every affected model of a trained graph; the graph stays as it is.

    Args:
        bench: The graph and its owners.
        strategy: Any but ``retrain``. Hyper-parameters of `GRAPH_METHODS` play no part: the config has them.
        asked: Whom it may ask about each model.
        round_epochs: Local epochs in a round of training of the strategy; 0: as many as each model of the
            graph was trained for, ``epochs`` of the config for means that nobody trained. Strategies count
            rounds: at 0 one of them costs each owner that is asked about as much as retraining the model.

    Raises:
        StrategyError: If the strategy is ``retrain``.
    """
    if strategy.name == RETRAIN:
        raise StrategyError("a graph is retrained by Experiment.retrain, not model by model on all owners")
    before, began = asdict(bench.federation.cost), time.perf_counter()
    work = _Work(bench, strategy, asked, round_epochs)
    if strategy.name in GRAPH_METHODS:
        work.by_method(METHODS[GRAPH_METHODS[strategy.name]])
    else:
        work.one_by_one()
    wall, after = time.perf_counter() - began, asdict(bench.federation.cost)
    states = {n: work.states.get(n) or bench.graph.state(n) for n in work.affected}
    cost = Cost(**{key: after[key] - before[key] for key in after})
    return Forgotten(states, cost, wall, work.runs, work.failed, work.facts)


class _Work:
    """One strategy on one graph, as it goes on."""

    def __init__(self, bench: Bench, strategy: Strategy, asked: Asked, round_epochs: int) -> None:
        self.bench, self.strategy, self.asked = bench, strategy, asked
        self.round_epochs = 0 if strategy.name in REPLAYS else round_epochs
        self.passes = passes_of(bench.world.scenario.models, bench.world.config)
        self.affected = bench.world.scenario.affected()
        self.states: dict[str, State] = {}
        self.failed: dict[str, str] = {}
        self.facts: Mapping[str, str | int | float] = {}
        self.runs = 0

    def by_method(self, method: Callable[[Bench], Applied]) -> None:
        """All models by a method for graphs."""
        self.runs = 1
        try:
            applied = method(self.bench)
        except UnlearnError as e:
            self.failed = dict.fromkeys(self.affected, str(e))
            return
        self.facts = applied.facts
        if applied.refused:
            self.failed = dict.fromkeys(self.affected, f"refused: {applied.refused}")
            return
        self.states = {name: applied.state(self.bench.graph, name) for name in self.affected}

    def one_by_one(self) -> None:
        """Each model in turn, until there is an answer for all."""
        order = self.affected[::-1] if self.strategy.name in NEWEST_FIRST else self.affected
        for number, model in enumerate(order, start=1):
            self.bench.tell(f"{self.strategy.name}: {model} ({number} of {len(order)} models)")
            outcome = self._tried(model)
            if outcome is None:
                continue
            self.states[model] = dict(outcome.state)
            if outcome.change is not None:
                self._change_others(outcome.change)
                return

    def _tried(self, model: str) -> Outcome | None:
        """What the strategy makes of a model; None where it fails, which is noted."""
        history, federation = self._history(model), self._federation(model)
        if self.strategy.name in REPLAYS and self.bench.graph.umig.node(model).owner is None:
            return self._mean_again(model, history)
        if "history" in self.strategy.needs and not history.has_updates:
            self.failed[model] = NO_HISTORY
            return None
        try:
            self.strategy.check(federation, history)
            self.runs += 1
            outcome = self.strategy.unlearn(federation, history)
        except (UnlearnError, RuntimeError) as e:  # torch's, where a strategy does not suit a kind of model
            log.warning("%s fails on %s", self.strategy.name, model, exc_info=True)
            self.failed[model] = _said(e)
            return None
        self.facts = outcome.facts or self.facts
        if outcome.refused:
            self.failed[model] = f"refused: {outcome.refused}"
            return None
        return outcome

    def _mean_again(self, model: str, history: NodeHistory) -> Outcome | None:
        """A mean that nobody trained has no training to replay: it is the mean of what was replayed."""
        try:
            return Outcome(history.initial())
        except UnlearnError as e:
            self.failed[model] = str(e)
            return None

    def _change_others(self, change: Callable[[StateDict], StateDict]) -> None:
        for name in self.affected:
            if name in self.states or name in self.failed:
                continue
            try:
                self.states[name] = dict(change(self.bench.graph.state(name)))
            except (UnlearnError, RuntimeError) as e:
                log.warning("%s fails on %s", self.strategy.name, name, exc_info=True)
                self.failed[name] = _said(e)

    def _federation(self, model: str) -> Some:
        return Some(self.bench.federation, asked_about(self.bench.graph, model, self.asked))

    def _history(self, model: str) -> NodeHistory:
        graph, world = self.bench.graph, self.bench.world

        def restart() -> State:
            if bad := [p for p in graph.umig.parents(model) if p in self.failed]:
                raise StrategyError(f"it starts from {bad[0]}, which could not be made to forget")
            return start_of(world, graph, model, self.states)

        kept = UPDATES.get(self.strategy.name)
        updates = kept(graph, model, asked_about(graph, model, self.asked)) if kept else {}
        return NodeHistory(world, graph, model, self.training(model), restart, updates)

    def training(self, model: str) -> Training:
        """How the strategy trains in a round for one model."""
        return training_of(self.bench.world.config, self.round_epochs or self.passes.get(model, 0))


def _said(e: Exception) -> str:
    return str(e) if isinstance(e, UnlearnError) else f"{type(e).__name__}: {e}"
