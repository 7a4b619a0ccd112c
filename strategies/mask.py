"""``mask``: the trivial yardstick for a class: its logit is removed from the head, nothing else.

No data, no Fisher, no client. Everything the model knew of the class is still in it: what is not better than
this beyond accuracy (probe, relearning, membership inference) has hidden the class, not unlearned it.

Hyper-parameters: ``bias`` = -10,000, the masked logit's bias: finite, so that losses stay so. Targets:
classes of all clients. Needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_unlearn.types import StateDict
from strategies.contract import Federation, Need, Outcome, State, Strategy, Target
from strategies.history import History


@dataclass(frozen=True)
class Mask(Strategy):
    """The classes' rows of the head are zeroed, their biases far below all others."""

    name: ClassVar[str] = "mask"
    paper: ClassVar[str] = "trivial yardstick"
    targets: ClassVar[frozenset[Target]] = frozenset(("classes",))
    needs: ClassVar[frozenset[Need]] = frozenset()

    bias: float = -1e4

    def problem(self, federation: Federation, history: History) -> str | None:
        """A head without a bias cannot be masked; nor can a class of some clients only."""
        if (why := super().problem(federation, history)) is not None:
            return why
        if federation.request.clients:
            return "a mask hides a class of every client; it cannot forget that of some clients only"
        head = history.head
        if f"{head}.bias" not in history.current():
            return f"the head {head!r} has no bias, so its logits cannot be masked"
        return None

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Mask the requested classes in the current model and in every checkpoint."""

        def change(state: StateDict) -> State:
            weight, bias = (state[f"{history.head}.{n}"].clone() for n in ("weight", "bias"))
            rows = list(federation.request.classes)
            weight[rows], bias[rows] = 0.0, self.bias
            return {**state, f"{history.head}.weight": weight, f"{history.head}.bias": bias}

        return Outcome(change(history.current()), change)
