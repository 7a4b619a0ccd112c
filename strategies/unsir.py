"""``unsir``: impair the model by error-maximising noise of the forgotten classes, then repair it.

Tarun et al. 2021, "Fast Yet Effective Machine Unlearning" (arXiv 2111.08947). The algorithm, and how it is
federated: see `strategies.impairing`; impair and repair are one round of FedAvg each, over all clients.

MEASURE
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
