"""Progress in words: which model is next, how long it took so far, how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Tell = Callable[[str], None]
"""Called with what is done next, in words."""


QUIET = 1.0
"""Seconds between two lines at least: many quick steps need no line each."""


class Progress:
    """Tells of steps of known size: of the first one, then of those that begin a while after the last line.

    Args:
        what: What is done at each step.
        work: Step to its size in any unit, in their order; those of size 0 are not waited for.
        tell: Told of a step as it begins.
        clock: Seconds that only rise.
    """

    def __init__(
        self, what: str, work: Mapping[str, float], tell: Tell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._work, self._tell, self._clock = what, dict(work), tell, clock
        self._places = {name: place for place, name in enumerate(self._work, start=1)}
        self._began: float | None = None
        self._told = 0.0
        self._done, self._left = 0.0, sum(self._work.values())
        self._size = 0.0

    def begin(self, name: str) -> None:
        """A step begins, and the one before it is done."""
        now = self._clock()
        first = self._began is None
        self._began = now if self._began is None else self._began
        self._done, self._left = self._done + self._size, self._left - self._size
        self._size = self._work[name]
        if not first and now - self._told < QUIET:
            return
        self._told = now
        text = f"{self._what}: {name} ({self._places[name]} of {len(self._places)})"
        if self._done:
            spent = now - self._began
            rest = spent / self._done * self._left
            text += f", {duration(spent)} so far, about {duration(rest)} to go"
        self._tell(text)

    def skip(self, name: str) -> None:
        """A step need not be made."""
        self._left -= self._work[name]
        self._work[name] = 0.0


def duration(seconds: float) -> str:
    """Seconds in words: "8 s", "2 min 5 s", "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
