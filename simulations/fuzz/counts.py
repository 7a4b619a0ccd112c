"""What became of the inputs: counted by how they came about, and the faulty ones kept."""

from __future__ import annotations

import base64
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from simulations.fuzz.contract import Case, Fault, Verdict

FAULTS: tuple[str, ...] = get_args(Fault)
MOST_KEPT = 20


@dataclass
class Counts:
    """The inputs of one run.

    Attributes:
        tried: Inputs by mutation.
        accepted: Those that were accepted, by mutation.
        outcomes: Inputs by outcome.
        faults: Inputs by what was wrong with how they were treated; empty when nothing was.
        kept: The first `MOST_KEPT` of these, with what it takes to try them again.
        slowest: Seconds that the slowest input took, with the independent rules, mostly theirs.
    """

    tried: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kept: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, number: int, case: Case, result: Verdict | Exception, seconds: float) -> None:
        """Count one input: what became of it, or the error that it led to."""
        fault: Fault | None
        if isinstance(result, Verdict):
            outcome, fault, said = result.outcome, result.fault, f"expected {result.expected}"
        else:
            outcome, fault, said = "crash", "crash", "".join(traceback.format_exception(result))
        self.tried[case.mutation] += 1
        self.accepted[case.mutation] += outcome == "accepted"
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        if fault is not None:
            self.faults[fault] += 1
            if len(self.kept) < MOST_KEPT:
                kept = {"number": number, "mutation": case.mutation, "fault": fault, "outcome": outcome}
                data = base64.b64encode(case.data).decode("ascii")
                self.kept.append({**kept, "said": said, "data": data})

    @property
    def total(self) -> int:
        """How many inputs were tried."""
        return self.tried.total()

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "tried": self.total,
            "faults": {name: self.faults[name] for name in FAULTS},
            "slowest_seconds": round(self.slowest, 4),
            "outcomes": dict(sorted(self.outcomes.items())),
            "mutations": {
                m: {"tried": n, "accepted": self.accepted[m]} for m, n in sorted(self.tried.items())
            },
            "kept": self.kept,
        }

    def table(self) -> str:
        """The counts for a terminal, as Markdown."""
        rows = [f"| {m} | {n} | {self.accepted[m]} |" for m, n in sorted(self.tried.items())]
        rows.append(f"| all | {self.total} | {self.accepted.total()} |")
        ends = [f"| {name} | {n} |" for name, n in sorted(self.outcomes.items())]
        faults = [f"| {name} | {self.faults[name]} |" for name in FAULTS]
        return "\n".join(
            (
                *("| inputs | tried | accepted |", "|---|---|---|", *rows, ""),
                *("| outcome | inputs |", "|---|---|", *ends, ""),
                *("| fault | inputs |", "|---|---|", *faults),
            )
        )
