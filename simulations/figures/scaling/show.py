"""The rows as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fl_unlearn.figures import BLACK, BLUE, GREEN, GREY, VERMILLION

Rows = Sequence[Mapping[str, Any]]

COLUMNS = {
    "affected": "affected models",
    "models": "of",
    "roots": "roots",
    "sources": "Fisher of",
    "scored": "scored on",
    "chosen": "chosen",
    "client_seconds": "s: clients",
    "server_seconds": "server",
    "apply_seconds": "applying",
    "unlearn_seconds": "unlearning in all",
    "retrained_models": "retraining measured on",
    "retrain_one_seconds": "s a model",
    "retrain_seconds": "s of all affected (extrapolated)",
    "ratio": "ratio to unlearning (extrapolated)",
    "client_cpu_seconds": "processor s: clients, unlearning",
    "retrain_cpu_seconds": "retraining (extrapolated)",
    "cpu_ratio": "ratio (extrapolated)",
    "forget_before": "forgotten, %: before",
    "forget_after": "after",
    "forget_after_worst": "worst model",
    "retain_before": "retained, %: before",
    "retain_after": "after ",
    "retain_drop_worst": "worst model's drop",
}


def write_csv(rows: Rows, path: Path) -> None:
    """Write all rows; titles as in `COLUMNS`."""
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS.values())
        writer.writerows([row[name] for name in COLUMNS] for row in rows)


def table(rows: Rows) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(v.strip() for v in COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(n, row[n]) for n in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if name.startswith(("forget_", "retain_")):
        return f"{100 * value:.1f}"
    if name.endswith("ratio"):
        return f"{value:.1f}x"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(rows: Rows) -> Figure:
    """Two panels over the number of affected models: seconds, and accuracies before and after."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _times(left, rows)
    _accuracies(right, rows)
    for ax in (left, right):
        counts = [row["affected"] for row in rows]
        ax.set_xscale("log")
        ax.set_xticks(counts, [f"{n:,}" for n in counts])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("affected models")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#EEEEEE")
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=8.5)
    return figure


def _times(ax: Axes, rows: Rows) -> None:
    few, many = (f(row["retrained_models"] for row in rows) for f in (min, max))
    measured = str(few) if few == many else f"{few} to {many}"
    lines = (
        (
            "retrain_seconds",
            f"retraining one by one (extrapolated from {measured} models)",
            VERMILLION,
        ),
        ("unlearn_seconds", "unlearning all of them with one update (measured)", BLUE),
        ("client_seconds", "of which clients: Fishers and scores", GREEN),
        ("apply_seconds", "of which applying it to the checkpoints", BLACK),
        ("server_seconds", "of which the rest: looking up, merging", GREY),
    )
    for name, label, colour in lines:
        style = {"retrain_seconds": "--o", "unlearn_seconds": "-o"}.get(name, ":.")
        fill = "white" if name == "retrain_seconds" else colour
        x, y = [row["affected"] for row in rows], [row[name] for row in rows]
        ax.plot(x, y, style, color=colour, markerfacecolor=fill, label=label)
    ax.set_yscale("log")
    ax.set_ylabel("seconds, wall clock")
    ax.set_title("Time to forget in all affected models", loc="left", fontsize=11)


def _accuracies(ax: Axes, rows: Rows) -> None:
    lines = (
        ("forget_before", "forgotten classes, before (mean)", "--o", VERMILLION),
        ("forget_after", "forgotten classes, after (mean)", "-o", VERMILLION),
        ("forget_after_worst", "forgotten classes, after (worst model)", ":x", VERMILLION),
        ("retain_before", "other classes, before (mean)", "--s", GREEN),
        ("retain_after", "other classes, after (mean)", "-s", GREEN),
    )
    for name, label, style, colour in lines:
        fill = "white" if name.endswith("before") else colour
        y = [100 * row[name] for row in rows]
        ax.plot([row["affected"] for row in rows], y, style, color=colour, markerfacecolor=fill, label=label)
    ax.set_ylim(-3, 103)
    ax.set_ylabel("test accuracy (%)")
    ax.set_title("Over all affected models", loc="left", fontsize=11)
