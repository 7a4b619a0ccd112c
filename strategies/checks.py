"""Checks of hyper-parameters, made when a strategy is built: before any training starts."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from strategies.errors import StrategyError


def require(strategy: Any, *, positive: Collection[str] = (), **choices: Collection[str]) -> None:
    """Check the hyper-parameters of a strategy.

    Args:
        strategy: The strategy, which has a ``name``.
        positive: Names of fields that must be finite and above 0.
        **choices: Field to the values that it may have.

    Raises:
        StrategyError: If one is wrong.
    """
    for name in positive:
        value = getattr(strategy, name)
        if not (math.isfinite(value) and value > 0):
            raise StrategyError(f"{strategy.name}: {name} must be above 0, got {value!r}")
    for name, known in choices.items():
        value = getattr(strategy, name)
        if value not in known:
            raise StrategyError(f"{strategy.name}: {name} must be one of {', '.join(known)}; got {value!r}")
