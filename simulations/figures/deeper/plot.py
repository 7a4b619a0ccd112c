"""The picture: what a probe still finds against what forgetting costs, and how fast the class comes back."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fl_unlearn.figures import BLACK, GREY
from fl_unlearn.probes import STEPS

from .measure import RETRAINED
from .table import RELEARN, Results

# Okabe and Ito (2008), distinct for colour-blind readers; markers repeat what colour says.
STYLES = [
    ("#9A9A9A", "o"),
    ("#56B4E9", "s"),
    ("#0072B2", "^"),
    ("#E69F00", "D"),
    ("#CC79A7", "v"),
    ("#009E73", "P"),
    ("#D55E00", "X"),
    ("#B8A800", "*"),
]


def draw(results: Results, path: Path) -> None:
    """Write the picture as a PNG file."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    named = [name for name in results if name != RETRAINED]
    styles = dict(zip(named, (STYLES * len(named))[: len(named)], strict=True))
    _probe_against_drop(left, results, styles)
    _relearning(right, results, styles)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#EEEEEE")
        ax.set_axisbelow(True)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _probe_against_drop(ax: Axes, results: Results, styles: dict[str, tuple[str, str]]) -> None:
    """One small mark per class, one large for their mean."""
    for name, (colour, marker) in styles.items():
        rows = list(results[name].values())
        x, y = ([100 * row[m] for row in rows] for m in ("retained drop", "probe"))
        ax.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.35, linewidths=0)
        ax.scatter(fmean(x), fmean(y), s=130, color=colour, marker=marker, edgecolors="white", zorder=3)
    rows = list(results.get(RETRAINED, {}).values())
    if rows:
        level = fmean(100 * row["probe"] for row in rows)
        ax.axhline(level, color=BLACK, linestyle="--", linewidth=1.2)
        ax.annotate(
            "retrained, mean", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_title("What a linear probe still finds (small: each class)", loc="left", fontsize=11)
    ax.set_xlabel("retained accuracy lost, final model (points)")
    ax.set_ylabel("probe's accuracy on the forgotten class (%)")


def _relearning(ax: Axes, results: Results, styles: dict[str, tuple[str, str]]) -> None:
    """Mean over the classes; the steps evenly spaced, 0 being the model as it is."""
    for name, by_class in results.items():
        colour, marker = styles.get(name, (BLACK, "o"))
        metrics = ("forgotten", *RELEARN)
        curve = [fmean(100 * row[m] for row in by_class.values()) for m in metrics]
        line = "--" if name == RETRAINED else "-"
        ax.plot(range(len(curve)), curve, line, color=colour, marker=marker, label=name, linewidth=1.6)
    ax.set_xticks(range(len(STEPS) + 1), [str(n) for n in (0, *STEPS)])
    ax.set_ylim(bottom=-2)
    ax.set_title("How fast the class comes back (mean over classes)", loc="left", fontsize=11)
    ax.set_xlabel("relearning steps")
    ax.set_ylabel("accuracy on the forgotten class (%)")
