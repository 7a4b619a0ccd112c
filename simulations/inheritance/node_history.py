"""One model of a graph as a strategy sees it: a federation of those it learned from, and how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

from fl_unlearn.model_graph import ModelGraph, average
from fl_unlearn.types import ForgetRequest
from simulations.inheritance.config import Config
from simulations.inheritance.world import World
from strategies.contract import Cost, Federation, State
from strategies.errors import StrategyError
from strategies.history import History, Training
from strategies.tasks import Answer, Settings, Tensors

Asked = Literal["behind", "own"]
"""Whom a strategy may ask about a model: every owner whose data it has inherited, or only the one on whose
data it was trained last (where there is none: all)."""

Updates = dict[str, tuple[State, int]]
"""Client to its model after local training, and how many samples it trained on."""


def asked_about(graph: ModelGraph, name: str, asked: Asked) -> list[str]:
    """The owners that a strategy may ask about a model."""
    own = graph.umig.node(name).owner
    return [own] if asked == "own" and own is not None else graph.owners_behind(name)


class Some:
    """Some clients of a federation; what they are asked counts there.

    Args:
        federation: The whole.
        names: Who is asked; in the federation's order.
    """

    def __init__(self, federation: Federation, names: Sequence[str]) -> None:
        self._whole = federation
        self._clients = {n: counts for n, counts in federation.clients.items() if n in names}

    @property
    def request(self) -> ForgetRequest:
        """What is to be forgotten."""
        return self._whole.request

    @property
    def clients(self) -> Mapping[str, Mapping[str, int]]:
        """Client name to its number of samples in each part."""
        return self._clients

    @property
    def cost(self) -> Cost:
        """What the whole federation spent so far."""
        return self._whole.cost

    def ask(
        self,
        task: str,
        tensors: Tensors | None = None,
        settings: Settings | None = None,
        clients: Sequence[str] | None = None,
    ) -> dict[str, Answer]:
        """Have clients run one task; see `strategies.contract.Federation`."""
        names = list(self._clients) if clients is None else list(clients)
        if unknown := [n for n in names if n not in self._clients]:
            raise StrategyError(
                f"there is no client {unknown[0]!r} behind this model: they are {', '.join(self._clients)}"
            )
        return self._whole.ask(task, tensors, settings, names)


class NodeHistory(History):
    """A model as the outcome of one round of training.

    Args:
        world: The config's world.
        graph: The graph.
        name: The model.
        training: How strategies train.
        restart: Gives what the model would be made from again, now that its parents have forgotten.
        updates: The clients' updates of the one round; empty: none were kept.
    """

    def __init__(
        self,
        world: World,
        graph: ModelGraph,
        name: str,
        training: Training,
        restart: Callable[[], State],
        updates: Updates,
    ) -> None:
        super().__init__(graph.store, training, world.head)
        self._world, self._graph, self._name = world, graph, name
        self._restart, self._updates = restart, updates

    def initial(self) -> State:
        """What the model would be made from again: the mean of its parents after they have forgotten."""
        return self._restart()

    def current(self) -> State:
        """The model as it is."""
        return self._graph.state(self._name)

    @cached_property
    def rounds(self) -> tuple[int, ...]:
        """The one that made the model."""
        return (1,)

    def global_model(self, number: int) -> State:
        """Before its training (0), or after (1): both from before anything was forgotten."""
        return self.current() if number else start_of(self._world, self._graph, self._name, {})

    @cached_property
    def has_updates(self) -> bool:
        """Whether there are any."""
        return bool(self._updates)

    def updates(self, number: int) -> Updates:
        """Those of the one round."""
        return self._updates


def training_of(config: Config, epochs: int = 0) -> Training:
    """How strategies train: by SGD, whatever the config's optimizer is, in rounds of so many local epochs.

    Args:
        config: Says how the graph was trained.
        epochs: 0: the config's ``epochs``.
    """
    return Training(
        rounds=1,
        epochs=epochs or config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )


def start_of(world: World, graph: ModelGraph, name: str, instead: Mapping[str, State]) -> State:
    """What a model's training starts from: new weights, or the mean of its parents.

    Args:
        world: The config's world.
        graph: The graph.
        name: The model.
        instead: Values of parents that are not those in the graph.
    """
    parents = graph.umig.parents(name)
    if not parents:
        return world.initial_state()
    return average(
        [(instead[p] if p in instead else graph.state(p), weight) for p, weight in parents.items()]
    )


def own_update(graph: ModelGraph, name: str, names: Sequence[str]) -> Updates:
    """The model's own training as the only update; for ``federaser``, which replays it."""
    node = graph.umig.node(name)
    if node.owner is None or node.owner not in names:
        return {}
    return {node.owner: (graph.state(name), node.examples or 1)}


def last_models(graph: ModelGraph, name: str, names: Sequence[str]) -> Updates:
    """Each client's newest model, of this one and its ancestors; ``gradient-ascent`` stays near to them."""
    newest = {n.owner: n for n in (*graph.umig.ancestors([name]), graph.umig.node(name)) if n.owner in names}
    return {o: (graph.state(n.name), n.examples or 1) for o, n in newest.items() if o is not None}


UPDATES: Mapping[str, Callable[[ModelGraph, str, Sequence[str]], Updates]] = {
    "federaser": own_update,
    "gradient-ascent": last_models,
}
"""Strategies that need the clients' updates of every round, for which a graph has something of that meaning.
Others that need them are told that there are none."""

REPLAYS = frozenset(("federaser",))
"""Those of them that train in place of the graph's training, and so for its epochs."""
