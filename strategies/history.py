"""What training left behind, as strategies read it: the models of a run's store, and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from fl_unlearn.lineage import Node, NodeKind
from fl_unlearn.run_store import RunStore
from strategies.errors import StrategyError


@dataclass(frozen=True)
class Training:
    """How the federation was trained: FedAvg over all clients, SGD at each.

    Attributes:
        rounds: Rounds of FedAvg.
        epochs: Local epochs a round.
        batch_size: Samples a step.
        lr: Learning rate.
        momentum: Of SGD, started afresh in every round.
        weight_decay: L2 penalty.
        seed: Of the initial model and of all orders of samples.
    """

    rounds: int
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


class History:
    """One finished run.

    Args:
        store: The run's store.
        training: How it was trained.
        head: Name of the model's head (`fl_unlearn.fisher.find_head`).
    """

    def __init__(self, store: RunStore, training: Training, head: str) -> None:
        self.store, self.training, self.head = store, training, head

    def initial(self) -> dict[str, torch.Tensor]:
        """The model that training began with."""
        return self._load(self.store.umig.last(NodeKind.INITIAL), "an initial model")

    def current(self) -> dict[str, torch.Tensor]:
        """The global model after the last round."""
        return self.global_model(self.rounds[-1])

    @cached_property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds, ascending.

        Raises:
            StrategyError: If there is none.
        """
        rounds = sorted({n.round for n in self.store.umig.nodes(kind=NodeKind.AGGREGATE)})
        if not rounds:
            raise StrategyError(f"the store {self.store.folder} records no round of training")
        return tuple(rounds)

    def global_model(self, number: int) -> dict[str, torch.Tensor]:
        """The global model after a round; after round 0: the initial model."""
        if number == 0:
            return self.initial()
        nodes = list(self.store.umig.nodes(kind=NodeKind.AGGREGATE, round=number))
        return self._load(nodes[-1] if nodes else None, f"a global model of round {number}")

    @cached_property
    def has_updates(self) -> bool:
        """Whether every client update of every round was kept."""
        kept = self.store.kept()
        nodes = list(self.store.umig.nodes(kind=NodeKind.CLIENT_UPDATE))
        return bool(nodes) and all(n.name in kept for n in nodes)

    def updates(self, number: int) -> dict[str, tuple[dict[str, torch.Tensor], int]]:
        """Client name to its model after local training in a round, and how many samples it trained on."""
        names = self.store.clients()
        return {
            names[n.owner]: (self._load(n, n.name), n.examples or 0)
            for n in self.store.umig.nodes(kind=NodeKind.CLIENT_UPDATE, round=number)
            if n.owner is not None
        }

    def _load(self, node: Node | None, what: str) -> dict[str, torch.Tensor]:
        if node is None or node.name not in self.store.kept():
            raise StrategyError(f"the store {self.store.folder} keeps no checkpoint of {what}")
        return dict(self.store.load(node.name).state)
