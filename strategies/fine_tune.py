"""``fine-tune``: train on for a few rounds on retained data only.

The weakest way to forget: nothing works against the forget set, it only fades (catastrophic forgetting).
A baseline of Liu et al. (arXiv 2408.08493), whose reference code uses a learning rate of 0.03.

Hyper-parameters: ``rounds`` = 2 (one local epoch each), ``lr`` = 0.03. Targets: classes, a client, samples.
Needs retained data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.checks import require
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, Strategy, Target
from strategies.history import History
from strategies.training import fedavg


@dataclass(frozen=True)
class FineTune(Strategy):
    """Rounds of FedAvg on retained data."""

    name: ClassVar[str] = "fine-tune"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2408.08493 (baseline)"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("retained-data",))

    rounds: int = 2
    lr: float = 0.03

    def __post_init__(self) -> None:
        require(self, positive=("rounds", "lr"))

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Train on from the current model."""
        first = history.rounds[-1] + 1
        state = fedavg(
            federation,
            history.current(),
            history.training,
            rounds=self.rounds,
            first=first,
            lr=self.lr,
            epochs=1,
        )
        return Outcome(state, facts={"rounds": self.rounds})
