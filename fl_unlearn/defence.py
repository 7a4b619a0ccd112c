"""How a request is defended against clients that lie: the settings, and what they stand for.

What a client sends is a claim. Each part below bounds what a false one can do; none of them finds out who
lies. `UnlearnSettings.defence` takes these settings, and `OFF` is none of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ReferenceRule = Literal["mean", "median", "trimmed-mean"]
REFERENCE_RULES = ("mean", "median", "trimmed-mean")


@dataclass(frozen=True)
class Defence:
    """Bounds on what a client's answers can do.

    Attributes:
        clip: A client's mean Fisher of one tensor (of a class, or of what is kept) adds up to at most this
            many times what the median client's retained one does; larger ones are scaled down. Only for the
            Fisher kind "normalized", whose size is that of the features; others differ by orders of magnitude
            between honest clients. None: not at all. It takes three clients, most of them honest.
        bounds: Refuse Fishers of a head that no data can have (`fisher_bounds.head_violation`; kind
            "normalized" only), if most of the answers keep to that bound.
        weight: A client's samples count at most as this many times the examples of its largest round.
        reference_rule: How the clients' retained Fishers become one: the mean over all samples; or, value by
            value, the median or the trimmed mean of the clients' means, each client counting the same.
        row_share: Of a head's weights of a class that is not to be forgotten, at most this share is selected:
            those with the smallest factors. Only in requests for classes. By default there is no cap: with a
            tenth (`STRICT`), no candidate passed where a class was poorly learned, and with a half the harm
            was larger than without a cap, for half a row dampened distorts more than a whole one.
        tensor_share: The same for every tensor that is not of a head known to the server (`scope="head"`, or
            ``head`` is set). 1.0: any number.
        liars: The share of the clients, 0 up to below 0.5, that the vote on candidates has to stand
            (`vote.Verdict`); rounded down, so that with 0.3 it takes four clients to stand one. 0: sums alone
            decide.
        contradiction: How far the measurements after the commit may lie from what calibration promised, in
            accuracy, before the result says that they contradict each other.
        distrusted: Clients whose answers are left out, by name: what the vote cannot decide (one of two
            holders lies, or a sole one) the operator can. They get the update like all others.
    """

    clip: float | None = 10.0
    bounds: bool = True
    weight: float = 2.0
    reference_rule: ReferenceRule = "mean"
    row_share: float = 1.0
    tensor_share: float = 1.0
    liars: float = 0.3
    contradiction: float = 0.02
    distrusted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.distrusted, str):  # one name in place of several is said to be wrong
            object.__setattr__(self, "distrusted", tuple(self.distrusted))

    def problem(self) -> str | None:
        """Why these settings make no sense, or None."""
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip >= 1):
            return f"defence: clip must be None or a finite number from 1 up, got {self.clip!r}"
        if not (math.isfinite(self.weight) and self.weight >= 1):  # JSON, which keeps it, knows no infinity
            return f"defence: weight must be a finite number from 1 up (1e9: no bound), got {self.weight!r}"
        if self.reference_rule not in REFERENCE_RULES:
            known = ", ".join(REFERENCE_RULES)
            return f"defence: reference_rule must be one of {known}; got {self.reference_rule!r}"
        for name in ("row_share", "tensor_share"):
            if not 0 < getattr(self, name) <= 1:
                return f"defence: {name} must be above 0, at most 1, got {getattr(self, name)!r}"
        if not 0 <= self.liars < 0.5:
            return f"defence: liars must be at least 0 and below 0.5, got {self.liars!r}: no vote stands half"
        if not 0 <= self.contradiction <= 1:
            return f"defence: contradiction must lie between 0 and 1, got {self.contradiction!r}"
        if isinstance(self.distrusted, str) or not all(isinstance(c, str) for c in self.distrusted):
            return f'defence: distrusted must be names of clients such as ("7",), got {self.distrusted!r}'
        return None


STRICT = Defence(row_share=0.1)
"""As the default, and hardly anything of the retained classes' rows is changed."""

OFF = Defence(
    clip=None, bounds=False, weight=1e9, row_share=1.0, tensor_share=1.0, liars=0.0, contradiction=1.0
)
"""No defence but the checks of form and of plausible counts."""
