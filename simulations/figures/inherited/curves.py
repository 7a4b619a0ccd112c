"""Accuracy against the threshold: what the figures of the threshold and of merging have in common.

Mean test accuracy of the affected models at each t (logarithmic). Below t = 1 nothing more is changed: a
factor would be above 1 there, and is not taken. A star is what calibration chose, where it lies: at its t,
with a dampening of its own, over the models that got that t. A ring is the t of the paper's settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fl_unlearn.figures import BLACK
from simulations.figures.inherited.drawing import (
    FORGOTTEN,
    KEPT,
    LOOKS,
    Look,
    banded,
    head,
    legend,
    level,
    level_handle,
    line_handle,
    panels,
    percent_axis,
    title_of,
)
from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.points import Point
from simulations.figures.inherited.records import Record, about, accuracies, distinct, levels, mean_of, values
from simulations.inheritance.results import BEFORE, RETRAINED

CALIBRATION, BY_HAND = "calibration", "by hand"
"""Who chose a t that is not merely one of the grid."""

LEVELS = (BEFORE, RETRAINED)
MOST_TICKS = 16


def reference(lab: Lab) -> list[Record]:
    """The affected models before and retrained; they have no threshold."""
    return levels(lab, lab.result(), threshold=None, dampening=None, chosen="", refused="")


def of_point(lab: Lab, way: str, point: Point, chosen: str = "") -> list[Record]:
    """A record for every model of a point; a single one without accuracies where it was refused."""
    first: Record = {**about(lab), "way": way}
    if point.refused:
        none: Record = {
            "threshold": None,
            "dampening": None,
            "chosen": chosen,
            "model": "",
            **accuracies(None),
        }
        return [{**first, **none, "refused": point.refused}]
    return [
        {
            **first,
            "threshold": point.thresholds[row.model],
            "dampening": point.dampenings[row.model],
            "chosen": chosen,
            "model": row.model,
            **accuracies(row),
            "refused": "",
        }
        for row in point.rows
    ]


def against_t(records: Sequence[Record], looks: Mapping[str, Look], *, band: bool = True) -> Figure:
    """Both accuracies against t, a line for each way; before and retrained are lines across.

    Args:
        records: Of one experiment.
        looks: Way to look.
        band: Whether bands are drawn, which hide one another where there are many ways.
    """
    figure, axes = panels(11, 4.9, 2)
    for ax, column, words in zip(axes, ("forget", "retained"), (FORGOTTEN, KEPT), strict=True):
        for way in LEVELS:
            level(ax, values([r for r in records if r["way"] == way], column), LOOKS[way])
        for way, look in looks.items():
            _way(ax, [r for r in records if r["way"] == way], column, look, band)
        percent_axis(ax, values(records, column))
        ax.set_xscale("log")
        tried = sorted(by_threshold([r for r in records if r["chosen"] == ""], column))
        if len(tried) <= MOST_TICKS:
            ax.set_xticks(tried, [f"{t:g}" for t in tried], fontsize=8)
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="threshold t", ylabel=words)
    head(figure, title_of(records), calibrated(records))
    handles = [level_handle(LOOKS[way]) for way in LEVELS if any(r["way"] == way for r in records)]
    handles += [line_handle(look) for look in looks.values()]
    if any(r["chosen"] == CALIBRATION and not r["refused"] for r in records):
        handles.append(Line2D([], [], label="chosen by calibration", color="white", **_STAR))
    if any(r["chosen"] == BY_HAND for r in records):
        handles.append(Line2D([], [], label="the paper's t", color="none", **_RING))
    legend(figure, handles, columns=4)
    return figure


_STAR: dict[str, Any] = {"marker": "*", "markersize": 12, "markeredgecolor": BLACK, "linestyle": "none"}
_RING: dict[str, Any] = {"marker": "o", "markersize": 12, "markeredgecolor": BLACK, "linestyle": "none"}


def _way(ax: Axes, own: Sequence[Record], column: str, look: Look, band: bool) -> None:
    lines = by_threshold([r for r in own if r["chosen"] != CALIBRATION], column)
    banded(ax, lines, look, band=band)
    for t, found in by_threshold([r for r in own if r["chosen"] == BY_HAND], column).items():
        ax.plot([t], [100 * fmean(found)], color="none", zorder=4, **_RING)
    for t, found in by_threshold([r for r in own if r["chosen"] == CALIBRATION], column).items():
        ax.plot([t], [100 * fmean(found)], color=look.colour, zorder=5, **_STAR)


def by_threshold(records: Sequence[Record], column: str) -> dict[float, list[float]]:
    """T to the accuracies measured there."""
    found: dict[float, list[float]] = {}
    for record in records:
        t, value = record["threshold"], record[column]
        if isinstance(t, float) and isinstance(value, float):
            found.setdefault(t, []).append(value)
    return found


def calibrated(records: Sequence[Record]) -> str:
    """What calibration chose for each way, in words."""
    parts = []
    own = [r for r in records if r["chosen"] == CALIBRATION]
    for way in distinct(own, "way"):
        mine = [r for r in own if r["way"] == way]
        if mine[0]["refused"]:
            parts.append(f"{way}: refused, nothing was changed")
        else:
            pairs = dict.fromkeys((r["threshold"], r["dampening"]) for r in mine)
            parts.append(f"{way}: t = " + " and ".join(f"{t:g} (λ = {lam:g})" for t, lam in pairs))
    return "chosen by calibration: " + "; ".join(parts) if parts else ""


def table(records: Sequence[Record]) -> list[Record]:
    """A row for each way and t: means over the affected models, and the worst of them."""
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        t = None if r["chosen"] == CALIBRATION else r["threshold"]
        rows.setdefault((r["experiment"], r["way"], t, r["chosen"], r["refused"]), []).append(r)
    return [
        {
            "experiment": name,
            "way": way,
            "t": _words(own, "threshold"),
            "dampening": _words(own, "dampening"),
            "chosen by": chosen,
            "forget: mean": mean_of(own, "forget"),
            "forget: worst": max(values(own, "forget"), default=None),
            "retained: mean": mean_of(own, "retained"),
            "retained: worst": min(values(own, "retained"), default=None),
            "refused": "yes" if refused else "",
        }
        for (name, way, _, chosen, refused), own in rows.items()
    ]


def _words(own: Sequence[Record], key: str) -> str:
    return ", ".join(f"{v:g}" for v in dict.fromkeys(values(own, key)))
