"""What can be wrong with the use of a strategy."""

from __future__ import annotations

from fl_unlearn.types import UnlearnError


class StrategyError(UnlearnError, ValueError):
    """A strategy cannot do what it is asked to."""


class UnsupportedError(StrategyError):
    """A strategy does not support the request's target, or lacks something that it needs."""
