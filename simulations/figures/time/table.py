"""The table: one line for each strategy, beside retraining."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

from simulations.figures.time.measure import Measured
from simulations.inheritance.node_strategies import RETRAIN
from simulations.inheritance.results import BEFORE

TOLERANCE = 0.01
"""Forgotten: no model is right about the labels to forget by more than this above the retrained one."""

MOST_LOST = 0.05
"""Kept: over all models, at most this share of accuracy on the other labels is lost, on average."""

YARDSTICK, FORGETS, LOSES, REMEMBERS, FAILED = (
    "yardstick",
    "forgets",
    "forgets, but loses the rest",
    "does not forget",
    "changes no model",
)

OURS = "fiun"
PAPER_LESS = 0.99
"""What the paper claims to save (Liu et al., arXiv 2408.08493)."""

TITLES = {
    "strategy": "strategy",
    "seconds": "owners' seconds",
    "ratio": "of retraining",
    "rounds": "rounds",
    "mb_down": "MB to owners",
    "mb_up": "MB from owners",
    "wall": "seconds in all",
    "runs": "runs",
    "forget_mean": "forgotten, mean %",
    "forget_worst": "worst %",
    "retained_mean": "retained, mean %",
    "retained_worst": "worst %",
    "verdict": "result",
    "note": "note",
}


@dataclass(frozen=True)
class Line:
    """One strategy over all affected models; accuracies from 0 to 1, None where it changed no model.

    Attributes:
        strategy: Its name.
        seconds: Computing time of all owners together.
        ratio: That as a share of retraining's; None: retraining took none.
        rounds: How often owners were asked and waited for.
        mb_down: Sent to owners, in megabytes.
        mb_up: Sent by owners, in megabytes.
        wall: Seconds from the first question to the last model.
        runs: How often the strategy was run.
        forget_mean: Accuracy on the labels to forget, mean over the models.
        forget_worst: The highest of them.
        retained_mean: Accuracy on the other labels, mean over the models.
        retained_worst: The lowest of them.
        verdict: `YARDSTICK`, `FORGETS`, `LOSES`, `REMEMBERS` or `FAILED`.
        note: On which models it failed, and why.
    """

    strategy: str
    seconds: float
    ratio: float | None
    rounds: int
    mb_down: float
    mb_up: float
    wall: float | None
    runs: int
    forget_mean: float | None
    forget_worst: float | None
    retained_mean: float | None
    retained_worst: float | None
    verdict: str
    note: str = ""


def lines_of(measured: Sequence[Measured]) -> list[Line]:
    """The lines, the fastest first, those that changed no model last; without what there was before."""
    by_name = {m.strategy: m for m in measured}
    before, retrain = by_name[BEFORE], by_name[RETRAIN]
    lines = [_line(m, before, retrain) for m in measured if m.strategy != BEFORE]
    return sorted(lines, key=lambda line: (line.verdict == FAILED, line.seconds))


def _line(m: Measured, before: Measured, retrain: Measured) -> Line:
    nothing = len(m.failed) == len(m.rows)
    forget, kept = ([] if nothing else accuracies(m, part) for part in ("forget", "retained"))
    return Line(
        m.strategy,
        m.seconds,
        m.seconds / retrain.seconds if retrain.seconds else None,
        m.rounds,
        m.bytes_down / 1e6,
        m.bytes_up / 1e6,
        m.wall,
        m.runs,
        fmean(forget) if forget else None,
        max(forget, default=None),
        fmean(kept) if kept else None,
        min(kept, default=None),
        verdict(m, before, retrain),
        _note(m),
    )


def accuracies(m: Measured, part: str) -> list[float]:
    """Accuracies of all models on a part, ``"forget"`` or ``"retained"``, where there are any."""
    return [value for row in m.rows if (value := getattr(row, part)) is not None]


def verdict(m: Measured, before: Measured, retrain: Measured) -> str:
    """What became of the models."""
    if m is retrain:
        return YARDSTICK
    if len(m.failed) == len(m.rows):
        return FAILED
    like = {row.model: row.forget or 0.0 for row in retrain.rows}
    if m.failed or any((row.forget or 0.0) > like[row.model] + TOLERANCE for row in m.rows):
        return REMEMBERS
    kept, was = accuracies(m, "retained"), accuracies(before, "retained")
    return LOSES if kept and fmean(was) - fmean(kept) > MOST_LOST else FORGETS


def _note(m: Measured) -> str:
    reasons: dict[str, list[str]] = {}
    for model, why in m.failed.items():
        reasons.setdefault(why, []).append(model)
    whole = [f"{', '.join(models)}: {why}" for why, models in reasons.items()]
    if len(reasons) == 1 and len(m.failed) == len(m.rows):
        return next(iter(reasons))
    return "; ".join(["left as they were: " + whole[0], *whole[1:]]) if whole else ""


def claim(lines: Sequence[Line]) -> str:
    """What ours saves, beside what the paper claims."""
    theirs = f"the paper claims {100 * PAPER_LESS:.0f} % less"
    ours = next((line for line in lines if line.strategy == OURS), None)
    if ours is None:
        return f"Owners' time against retraining: ours ({OURS}) was not run; {theirs}."
    if ours.verdict == FAILED or ours.ratio is None:
        return f"Owners' time against retraining: ours ({OURS}) changed no model; {theirs}."
    saved = less(ours.ratio)
    said = f"{saved}, and {ours.verdict}" if ours.verdict != FORGETS else saved
    return f"Owners' time against retraining: ours ({OURS}) {said}; {theirs}."


def less(ratio: float) -> str:
    """A ratio as what is saved or added, such as "98.7 % less"."""
    return f"{100 * abs(1 - ratio):.1f} % {'less' if ratio <= 1 else 'more'}"


def markdown(lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    rows = ["| " + " | ".join(TITLES.values()) + " |", "|" + " --- |" * len(TITLES)]
    for line in lines:
        values = asdict(line)
        rows.append("| " + " | ".join(_cell(name, values[name]) for name in TITLES) + " |")
    return "\n".join(rows)


def _cell(name: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    if name.startswith(("forget", "retained")):
        return f"{100 * value:.1f}"
    if name in ("rounds", "runs"):
        return f"{value:d}"
    return f"{value:.4f}" if name == "ratio" else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """The table as CSV: accuracies from 0 to 1, empty where there is none."""
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [column.name for column in fields(Line)])
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
