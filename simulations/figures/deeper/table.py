"""From measured values to a tidy CSV file and Markdown tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fl_unlearn.probes import STEPS

from .measure import RETRAINED, Values

Results = Mapping[str, Mapping[int, Values]]
"""Variant to class to metric to value."""

RELEARN = tuple(f"relearn {n}" for n in STEPS)
FRESH = tuple(f"relearn from a fresh row {n}" for n in STEPS)
SHOWN = {
    "forgotten": "forgotten",
    "retained drop": "retained drop",
    "probe": "probe",
    "probe over retrained": "probe minus retrained's",
    **{name: name for name in RELEARN},
    "relearn over retrained": "relearn minus retrained's, most",
    **{name: name.removeprefix("relearn from a ") for name in FRESH},
    "fresh over retrained": "fresh row minus retrained's, most",
    "membership by loss: AUC": "loss attack AUC",
    "membership by entropy: AUC": "entropy attack AUC",
    "checkpoints: forgotten max": "checkpoints: forgotten, max",
    "checkpoints: drop mean": "drop, mean",
    "checkpoints: drop worst": "drop, worst",
}
"""Metric to heading. In all of them more is worse."""

PER_CLASS = (
    "forgotten",
    "retained drop",
    "probe",
    "relearn 30",
    "membership by loss: AUC",
    "checkpoints: drop worst",
)


def compared(results: Results) -> dict[str, dict[int, Values]]:
    """``results`` with each class's differences from the retrained model, where that was measured."""
    out: dict[str, dict[int, Values]] = {}
    for name, by_class in results.items():
        out[name] = {}
        for label, values in by_class.items():
            out[name][label] = dict(values)
            yardstick = results.get(RETRAINED, {}).get(label)
            if yardstick is not None:
                for what, metrics in (("probe", ("probe",)), ("relearn", RELEARN), ("fresh", FRESH)):
                    over = max(values[n] - yardstick[n] for n in metrics)
                    out[name][label][f"{what} over retrained"] = over
    return out


def write_csv(results: Results, path: Path) -> None:
    """One row per class, variant and metric."""
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("class", "variant", "metric", "value"))
        for name, by_class in compared(results).items():
            for label, values in by_class.items():
                writer.writerows((label, name, metric, value) for metric, value in values.items())


def markdown(results: Results) -> str:
    """One table over all classes, mean / worst, and one per metric by class."""
    full = compared(results)
    lines = ["Mean / worst over the classes; accuracies in %, drops and differences in points.", ""]
    lines += _table(["variant", *SHOWN.values()], [[n, *_summary(full[n])] for n in full])
    labels = sorted({label for by_class in full.values() for label in by_class})
    for metric in PER_CLASS:
        rows = [[n, *(_cell(metric, [full[n][c]] if c in full[n] else []) for c in labels)] for n in full]
        lines += ["", f"{SHOWN[metric]}, by class", "", *_table(["variant", *map(str, labels)], rows)]
    return "\n".join(lines) + "\n"


def _summary(by_class: Mapping[int, Values]) -> list[str]:
    return [_cell(metric, list(by_class.values())) for metric in SHOWN]


def _cell(metric: str, rows: Sequence[Values]) -> str:
    values = [row[metric] for row in rows if metric in row]
    if not values:
        return "-"
    kinds: tuple[Callable[..., float], ...] = (fmean, max) if len(values) > 1 else (fmean,)
    if metric.endswith("AUC"):
        return " / ".join(f"{kind(values):.3f}" for kind in kinds)
    # Adding 0 turns a rounded −0.0 into 0.0.
    return " / ".join(f"{round(100 * kind(values), 1) + 0.0:.1f}" for kind in kinds)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
