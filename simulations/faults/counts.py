"""What a run of the harness has seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulations.faults.check import KINDS, Problems
from simulations.faults.tape import PHASES

PROMPT = ("SIGKILL", "power cut")


@dataclass
class Counts:
    """Counters; `kills` by (phase, kind).

    Attributes:
        kills: Processes killed.
        triggers: The same, by what chose the instant.
        disk_full: Disks that were full, by (phase, how the operation ended): refused, or without an error,
            since there was room enough, or the decision was made and is finished later.
        done: Rounds, updates... that came to their end, and checkpoints compared.
        failures: By one of `check.KINDS`.
        examples: The first failures in words.
    """

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    triggers: Counter[str] = field(default_factory=Counter)
    disk_full: Counter[tuple[str, str]] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """How many processes were killed."""
        return sum(self.kills.values())

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.failures

    def fail(self, found: Problems, where: str) -> None:
        """Note what was wrong."""
        for kind in {kind for kind, _ in found}:
            self.failures[kind] += 1
        self.examples += [f"{where}: {kind}: {what}" for kind, what in found][
            : max(0, 20 - len(self.examples))
        ]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kills": self.killed,
            "kills_by_phase": {
                phase: {kind: self.kills[phase, kind] for kind in PROMPT}
                for phase in PHASES
                if any(self.kills[phase, kind] for kind in PROMPT)
            },
            "kills_by_trigger": dict(sorted(self.triggers.items())),
            "disk_full": {f"{phase}, {how}": n for (phase, how), n in sorted(self.disk_full.items())},
            "done": dict(sorted(self.done.items())),
            "failures": {kind: self.failures[kind] for kind in KINDS},
            "examples": self.examples,
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """For people."""
        lines = [f"{'killed while':14}{PROMPT[0]:>10}{PROMPT[1]:>11}"]
        for phase, kinds in self.plain()["kills_by_phase"].items():
            lines.append(f"{phase:14}{kinds[PROMPT[0]]:10}{kinds[PROMPT[1]]:11}")
        totals = [sum(n for (_, kind), n in self.kills.items() if kind == k) for k in PROMPT]
        lines += [f"{'all':14}{totals[0]:10}{totals[1]:11}", ""]
        full = Counter(how for (_, how), n in self.disk_full.items() for _ in range(n))
        lines.append("disk full: " + ", ".join(f"{n} {how}" for how, n in sorted(full.items())))
        lines.append("done: " + ", ".join(f"{n} {what}" for what, n in sorted(self.done.items())))
        lines.append("failures: " + ", ".join(f"{self.failures[kind]} {kind}" for kind in KINDS))
        return "\n".join([*lines, *(f"  {example}" for example in self.examples)])
