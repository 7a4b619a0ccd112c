"""``retrain``: the yardstick.

The federation is trained again from the same initial model without the forget set, for as many rounds, with
the same seeds; clients that have nothing to forget see their samples in the same orders as in training. What
it does not know is what forgetting means (exact unlearning; Cao and Yang 2015). Deterministic: same seed,
same model.

Hyper-parameters: none; those of training apply. Targets: classes, a client, samples. Needs the retained data
at the clients and as many rounds as training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, Strategy, Target
from strategies.history import History
from strategies.training import fedavg


@dataclass(frozen=True)
class Retrain(Strategy):
    """Training again without the forget set."""

    name: ClassVar[str] = "retrain"
    paper: ClassVar[str] = "Cao and Yang 2015, Towards Making Systems Forget with Machine Unlearning"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("retained-data",))

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Train from the initial model on retained data, for as many rounds as the original."""
        rounds = history.training.rounds
        state = fedavg(federation, history.initial(), history.training, rounds=rounds)
        return Outcome(state, facts={"rounds": rounds})
