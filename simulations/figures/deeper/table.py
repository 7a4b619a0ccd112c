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
TABLES = {
    "Final model and checkpoints": {
        "forgotten": "forgotten",
        "retained drop": "retained drop",
        "checkpoints: forgotten max": "checkpoints: forgotten, max",
        "checkpoints: drop mean": "drop, mean",
        "checkpoints: drop worst": "drop, worst",
    },
    "What attacks find": {
        "probe": "probe",
        "probe over retrained": "minus retrained's",
        "membership by loss: AUC": "membership: AUC by loss",
        "membership by entropy: AUC": "by entropy",
    },
    "Relearning": {
        **{name: f"after {n}" for name, n in zip(RELEARN, STEPS, strict=True)},
        "relearn over retrained": "minus retrained's, most",
        **{name: f"fresh row: after {n}" for name, n in zip(FRESH, STEPS, strict=True)},
        "fresh over retrained": "minus retrained's, most",
    },
}
"""Title to metric to heading. In all of them more is worse."""

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
    """Tables over all classes, mean / worst, and one per metric by class."""
    full = compared(results)
    lines = ["Mean / worst over the classes; accuracies in %, drops and differences in points."]
    for title, metrics in TABLES.items():
        rows = [[n, *(_cell(m, list(full[n].values())) for m in metrics)] for n in full]
        lines += ["", title, "", *_table(["variant", *metrics.values()], rows)]
    labels = sorted({label for by_class in full.values() for label in by_class})
    for metric in PER_CLASS:
        rows = [[n, *(_cell(metric, [full[n][c]] if c in full[n] else []) for c in labels)] for n in full]
        lines += ["", f"By class: {metric}", "", *_table(["variant", *map(str, labels)], rows)]
    return "\n".join(lines) + "\n"


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
