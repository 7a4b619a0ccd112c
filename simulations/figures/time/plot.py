"""The picture: a bar of owners' seconds for each strategy, and beside it what was forgotten and kept."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from fl_unlearn.figures import BLACK, BLUE, GREEN, GREY
from simulations.figures.time.table import (
    FAILED,
    FORGETS,
    LOSES,
    OURS,
    REMEMBERS,
    YARDSTICK,
    Line,
    claim,
)

ORANGE = "#E69F00"
STYLES: dict[str, dict[str, Any]] = {
    YARDSTICK: {"color": BLACK},
    FORGETS: {"color": BLUE},
    LOSES: {"facecolor": ORANGE, "edgecolor": "white", "hatch": "...", "linewidth": 0},
    REMEMBERS: {"facecolor": "#E4E4E4", "edgecolor": GREY, "hatch": "////", "linewidth": 0},
}
LEGEND = {
    FORGETS: "forgets in every model, keeps the rest",
    LOSES: "forgets, but loses more than 5 points of the rest",
    REMEMBERS: "does not forget: a model is over 1 % above the retrained one, or was left as it was",
    YARDSTICK: "retraining the affected models",
}
COLUMNS = ("forgotten %\nmean / worst", "retained %\nmean / worst")
WHERE = (1.10, 1.26)  # of the two columns, in widths of the axes


def draw(lines: Sequence[Line], title: str, about: str = "") -> Figure:
    """The picture of a table.

    Args:
        lines: The lines, in the order in which they are drawn from the top.
        title: What was forgotten where.
        about: A line beneath: how it was measured.
    """
    bars = [line for line in lines if line.verdict != FAILED]
    notes = [f"{'Not shown: ' if n.verdict == FAILED else ''}{n.strategy}: {n.note}" for n in lines if n.note]
    foot = [textwrap.fill(text, 150) for text in (about, *notes) if text]
    below = 1.2 + 0.19 * sum(1 + text.count("\n") for text in foot)
    height = 0.32 * len(bars) + 1.0 + below
    figure = Figure(figsize=(11.5, height))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.17, right=0.74, top=1 - 1.0 / height, bottom=below / height)
    ax = figure.add_subplot()
    _bars(ax, bars)
    figure.text(0.02, 1 - 0.12 / height, title, fontsize=12, va="top", weight="bold")
    figure.text(0.02, 1 - 0.38 / height, claim(lines), fontsize=10, va="top", color=GREEN)
    handles = [Patch(label=LEGEND[v], **STYLES[v]) for v in LEGEND if any(b.verdict == v for b in bars)]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.02, (below - 1.05) / height),
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    figure.text(0.02, 0.12 / height, "\n".join(foot), fontsize=8.5, va="bottom", color="#555555")
    return figure


def _bars(ax: Axes, bars: Sequence[Line]) -> None:
    left, right = limits([b.seconds for b in bars])
    for y, line in enumerate(bars):
        ax.barh(y, max(line.seconds - left, 0.0), left=left, height=0.66, **STYLES[line.verdict])
        ax.annotate(
            beside(line),
            (max(line.seconds, left), y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            weight="bold" if line.strategy == OURS else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the line of retraining
        )
        for where, text in zip(WHERE, accuracies(line), strict=True):
            ax.text(where, y, text, transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=9)
    for where, text in zip(WHERE, COLUMNS, strict=True):
        ax.text(where, -0.75, text, transform=ax.get_yaxis_transform(), ha="center", va="bottom", fontsize=9)
    for line in bars:
        if line.verdict == YARDSTICK:
            ax.axvline(line.seconds, color=BLACK, linestyle="--", linewidth=1, zorder=0)
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_yticks(range(len(bars)), [named(b.strategy) for b in bars], fontsize=10)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds that owners compute for the whole graph, all of them together (log)", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)


def named(strategy: str) -> str:
    """A strategy's name on the axis."""
    return f"{strategy} (ours)" if strategy == OURS else strategy


def limits(seconds: Sequence[float]) -> tuple[float, float]:
    """The axis: room below the least that is above 0, and for a label above the most."""
    above = [s for s in seconds if s > 0] or [1.0]
    low = min(above) / 3
    return low, max(above) * (max(above) / low) ** 0.45


def beside(line: Line) -> str:
    """What stands at the end of a bar."""
    if not line.seconds:
        return "0 s"
    ratio = "" if line.ratio is None or line.verdict == YARDSTICK else f" = {line.ratio:.2g} x retraining"
    return f"{line.seconds:.3g} s{ratio}"


def accuracies(line: Line) -> tuple[str, str]:
    """The two columns at the right."""
    pairs = ((line.forget_mean, line.forget_worst), (line.retained_mean, line.retained_worst))
    first, second = (" / ".join("-" if v is None else f"{100 * v:.1f}" for v in pair) for pair in pairs)
    return first, second
