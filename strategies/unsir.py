"""``unsir``: impair the model by error-maximising noise of the forgotten classes, then repair it.

Tarun et al. 2021, "Fast Yet Effective Machine Unlearning" (arXiv 2111.08947). The algorithm, and how it is
federated: see `strategies.impairing`; impair and repair are one round of FedAvg each, over all clients.

Hyper-parameters: `strategies.impairing.Impairing`. Noise as in the paper: Adam at 0.1, 40 steps, λ = 0.1. The
paper, which has one model and no clients, impairs by Adam at 0.02 and repairs at 0.01, one epoch each in
batches of 256, with 0.64 times as much noise a class as retained samples. In federated averaging on CIFAR-10
this leaves 28 % accuracy on the retained classes. The defaults are half of both rates and 0.2 of noise, and
as many local epochs as in training: with one of them, 7 to 9 steps on digits, a third of the class is left.
``curriculum`` is no part of the paper's, and off.

Targets: classes of all clients. Not a client, not samples: what they hold is of classes that others keep, and
noise under these labels would impair them for everybody. Needs the forget data (the holders only look which
of the classes they own) and the retained data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.checks import require
from strategies.contract import Federation, Need, Outcome, Strategy, Target
from strategies.history import History
from strategies.impairing import Impairing, no_noise


@dataclass(frozen=True)
class Unsir(Impairing, Strategy):
    """Noise, impair, repair."""

    name: ClassVar[str] = "unsir"
    paper: ClassVar[str] = "Tarun et al. 2021, arXiv 2111.08947"
    targets: ClassVar[frozenset[Target]] = frozenset(("classes",))
    needs: ClassVar[frozenset[Need]] = frozenset(("forget-data", "retained-data"))

    def __post_init__(self) -> None:
        require(self, positive=Impairing.__dataclass_fields__.keys() - {"noise_penalty", "curriculum"})

    def problem(self, federation: Federation, history: History) -> str | None:
        """A class of some clients only cannot be forgotten."""
        return super().problem(federation, history) or no_noise(federation)

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Impair, then repair."""
        impaired = self.impair(federation, history)
        return Outcome(self.repair(federation, history, impaired))
