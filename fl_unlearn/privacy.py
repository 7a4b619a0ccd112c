"""How much of a client's data its answers tell: clipping, Gaussian noise, masked sums; and what it costs.

Noise is added by the client, to sums over its own samples, each clipped before: adding or removing one of its
samples changes the sums by at most the clipping norm (in L2), so that they are differentially private in the
sense of Dwork et al. 2006 with the Gaussian mechanism, sample by sample. Epsilon comes from Google's
``dp-accounting``, which Flower uses too. Counts are noisy as sums are. What has no noise is not covered by
any epsilon, nor does it hold against whoever can predict the system's randomness or its floating-point
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fl_unlearn.errors import SettingsError


@dataclass(frozen=True)
class Privacy:
    """What clients do to their answers before they send them. By default: nothing.

    Attributes:
        noise: Noise multiplier of the Fisher answer: the standard deviation of the noise is this times
            ``clip`` on each value, and this on each count of samples. 0: no noise, nothing is clipped.
        clip: Largest L2 norm of one sample's squared gradient over all parameters in scope, > 0; larger ones
            are scaled down to it. A value far below the usual norm costs only the differences of norm.
        score_noise: Noise multiplier of each scoring answer, calibration and verification; 0: exact counts.
        pooled: Whether clients score what is to be forgotten and the rest as two groups, and not by class. Is
            so with ``score_noise`` or ``masked`` in any case.
        masked: Whether answers are sent under pairwise masks that cancel in the sum over clients: the server
            sees sums over all of them only, and cannot look at, clip or refuse a single client's answer.
        delta: The delta at which epsilon is told, between 0 and 1.
    """

    noise: float = 0.0
    clip: float = 1.0
    score_noise: float = 0.0
    pooled: bool = False
    masked: bool = False
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("noise", "score_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"{name} must be a finite number from 0 up, got {value!r}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise SettingsError(f"clip must be a finite number above 0, got {self.clip!r}")
        if not 0 < self.delta < 1:
            raise SettingsError(f"delta must lie between 0 and 1, got {self.delta!r}")

    @property
    def sums_only(self) -> bool:
        """Whether the clients' Fisher answers make sense only when they are added."""
        return self.noise > 0 or self.masked

    @property
    def two_groups(self) -> bool:
        """Whether scores are of two groups: what is to be forgotten, and the rest."""
        return self.pooled or self.masked or self.score_noise > 0

    def weaker(self, least: Privacy) -> str | None:
        """In what this protects less than ``least``, in words; None: in nothing."""
        if self.noise < least.noise:
            return f"noise {self.noise:g}, where at least {least.noise:g} is wanted"
        if least.noise and self.clip > least.clip:  # more noise, too, but over a wider sum: the same epsilon
            return f"clip {self.clip:g}, where at most {least.clip:g} is wanted"
        if self.score_noise < least.score_noise:
            return f"score_noise {self.score_noise:g}, where at least {least.score_noise:g} is wanted"
        if least.two_groups and not self.two_groups:
            return "scores by class, where pooled ones are wanted"
        if least.masked and not self.masked:
            return "answers without masks, where masked ones are wanted"
        return None


def cost(released: Sequence[float], earlier: Sequence[float], privacy: Privacy) -> dict[str, Any]:
    """What a request cost each client's samples, as the result and the report tell it.

    Args:
        released: Noise multipliers of this request's noisy answers.
        earlier: Those of earlier requests on the same data.
        privacy: How the request was served.

    Returns:
        ``multipliers``, ``delta``, ``epsilon`` of the noisy answers (None: there are none, and no bound),
        ``epsilon_so_far`` with those before,
        and in ``not_covered`` what they are not about.
    """
    scores = not privacy.score_noise
    open_ = [
        *([] if privacy.noise else ["the Fisher answers"]),
        *(["the scores in calibration and verification"] if scores else []),
        "that a client answered, and what it trained",
    ]
    return {
        "multipliers": list(released),
        "delta": privacy.delta,
        "epsilon": epsilon(tuple(released), privacy.delta) if released else None,
        "epsilon_so_far": epsilon((*earlier, *released), privacy.delta) if released or earlier else None,
        "masked": privacy.masked,
        "not_covered": open_,
    }


@lru_cache(maxsize=64)
def epsilon(multipliers: tuple[float, ...], delta: float) -> float | None:
    """What Gaussian mechanisms cost together, each over the whole of a client's data.

    Args:
        multipliers: The noise multiplier of each: standard deviation by L2 sensitivity.
        delta: Between 0 and 1.

    Returns:
        Epsilon, for adding or removing one sample: an upper bound, by Renyi differential privacy; None when a
        multiplier is 0: there is no bound.

    Raises:
        SettingsError: If ``dp-accounting`` is not installed.
    """
    if any(z <= 0 for z in multipliers):
        return None
    if not multipliers:
        return 0.0
    event, accountant = _accounting()
    for z in multipliers:
        accountant.compose(event.GaussianDpEvent(z))
    return float(accountant.get_epsilon(delta))


def check_accounting(privacy: Privacy) -> None:
    """Check that the cost of what is noisy can be told.

    Raises:
        SettingsError: If ``dp-accounting`` is needed and not installed.
    """
    if privacy.noise or privacy.score_noise:
        _accounting()


def _accounting() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError as e:
        raise SettingsError(
            "noise needs an accountant to tell its epsilon: pip install 'fl-unlearn[privacy]'"
        ) from e
    return dp_event, RdpAccountant()
