"""``not``: one layer's parameters are negated, then the federation trains on with retained data.

Khalil et al., "NoT: Federated Unlearning via Weight Negation", CVPR 2025 (arXiv 2503.05657).
Algorithm: θ_l ← −θ_l for the first layer l (weight and bias, so that its output before the activation is
negated); then FedAvg on retained data. The negated layer no longer fits those behind it, which have to learn
anew what to make of it, from data without the forget set. Nothing but the order of the layers decides what is
disturbed: the server needs neither forget data nor history.

Hyper-parameters: ``layer`` = "": the first one with a weight of two dimensions or more (the paper's default,
and best in its ablation: the first convolution or embedding). ``lr`` = 0: that of training, in the rounds
afterwards. ``rounds`` = 5, with the local epochs of training: a quarter (digits) and a third (CIFAR-10) of
training, which leaves held-out accuracy on the other classes 5 and 10 points below retraining's. The paper's
number was not to be had when this was written; summaries of it give about half of retraining's communication.
Targets: classes, a client, samples (the paper has all three). Needs retained data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fl_unlearn.types import StateDict
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, State, Strategy, Target
from strategies.errors import StrategyError
from strategies.history import History
from strategies.training import fedavg


@dataclass(frozen=True)
class Not(Strategy):
    """A layer negated, then rounds of FedAvg on retained data.

    Attributes:
        layer: Name of the module to negate; "": the first.
        rounds: Rounds of FedAvg afterwards.
        lr: Their learning rate; 0: that of training.
    """

    name: ClassVar[str] = "not"
    paper: ClassVar[str] = "Khalil et al. 2025, NoT: Federated Unlearning via Weight Negation (CVPR)"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("retained-data",))

    layer: str = ""
    rounds: int = 5
    lr: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise StrategyError(
                f"not: rounds must be at least 1, got {self.rounds}; a negated model is of no use untrained"
            )
        if self.lr < 0:
            raise StrategyError(f"not: lr must be above 0, or 0 for that of training, got {self.lr!r}")

    def problem(self, federation: Federation, history: History) -> str | None:
        """A layer that the model does not have cannot be negated."""
        if (why := super().problem(federation, history)) is not None:
            return why
        known = layers(history.current())
        if self.layer and self.layer not in known:
            return f"there is no layer {self.layer!r}: they are {', '.join(known)}"
        return None

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Negate the layer of the current model, and train on."""
        current = history.current()
        layer = self.layer or next(iter(layers(current)))
        state = fedavg(
            federation,
            negated(current, layer),
            history.training,
            rounds=self.rounds,
            first=history.rounds[-1] + 1,
            lr=self.lr or history.training.lr,
        )
        return Outcome(state, facts={"layer": layer, "rounds": self.rounds})


def layers(state: StateDict) -> Mapping[str, list[str]]:
    """Layers with a weight of two dimensions or more, in the model's order, to the names of their tensors."""
    found: dict[str, list[str]] = {}
    for name in state:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return {layer: names for layer, names in found.items() if any(state[n].ndim > 1 for n in names)}


def negated(state: StateDict, layer: str) -> State:
    """A copy of a model in which the parameters of one of its `layers` have the opposite sign."""
    names = layers(state)[layer]
    return {n: -t if n in names else t.clone() for n, t in state.items()}
