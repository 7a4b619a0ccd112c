"""What a fuzzed part gives: inputs drawn at random, and a judgement on what the library makes of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol

Fault = Literal["crash", "wrong acceptance", "wrong refusal"]
"""What must not happen. A refusal for another reason than the expected one is a wrong refusal, too."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        mutation: How it came about.
        data: The input as it comes from outside.
        facts: What else the judgement needs to know.
    """

    mutation: str
    data: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What became of an input.

    Attributes:
        outcome: "accepted", or why it was refused, in a word.
        expected: The same, by rules written down independently of the library.
    """

    outcome: str
    expected: str

    @property
    def fault(self) -> Fault | None:
        """What is wrong, or None."""
        if self.outcome == self.expected:
            return None
        return "wrong acceptance" if self.outcome == "accepted" else "wrong refusal"


class Target(Protocol):
    """A part of the library that reads what comes from outside."""

    def draw(self, random: Random) -> Case:
        """An input: a sound one, or one that was changed. Depends on nothing but ``random``."""
        ...

    def judge(self, case: Case) -> Verdict:
        """Give the input to the library. What it raises, other than to refuse it, is a crash."""
        ...
