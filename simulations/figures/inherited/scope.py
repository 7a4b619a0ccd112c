"""Changing the head alone, the last block with it, or all layers: what it does, and what it costs the owners.

Shows: test accuracy of the affected models after ours, calibrated for each scope on its own (a line for the
mean, a mark for each model), and the owners' computing time for the whole request (processor time on a CPU)
beside that of retraining. Lines across are the models before and retrained. A scope that calibration refused
has no marks; its time was spent all the same. Does not show what features know: `simulations.figures.deeper`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_unlearn.figures import BLUE, GREEN, GREY
from simulations.figures.inherited.blocks import last_block
from simulations.figures.inherited.drawing import (
    FORGOTTEN,
    KEPT,
    LOOKS,
    head,
    legend,
    level,
    level_handle,
    panels,
    percent_axis,
    title_of,
)
from simulations.figures.inherited.lab import Lab, trial_of_ours
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.points import Point
from simulations.figures.inherited.records import Record, about, accuracies, distinct, levels, mean_of, values
from simulations.inheritance.results import BEFORE, RETRAINED

LEVELS = (BEFORE, RETRAINED)


def scopes(lab: Lab) -> dict[str, str]:
    """What is changed, in words, to the Fisher scope; networks with a head alone have no more."""
    block, name = last_block(lab.world.build_model(), lab.world.head), lab.world.head
    if not block:
        return {"head": "head"}
    return {"head": "head", "last block": f"{name}.*,{block}.*", "all layers": "all"}


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Ours with each scope, and the models before and retrained."""
    result = lab.result()
    again = sum(result.retrain.values())
    records = levels(lab, result, scope="", threshold=None, dampening=None, owner_seconds=None, refused="")
    records = [{**r, "owner_seconds": again} if r["way"] == RETRAINED else r for r in records]
    known = scopes(lab)
    trials = [
        trial_of_ours(words, replace(lab.settings, fisher_scope=scope)) for words, scope in known.items()
    ]
    points = lab.points(trials, remember=False)
    for (words, scope), point in zip(known.items(), points, strict=True):
        records += of_scope(lab, words, scope, point)
    return records


def of_scope(lab: Lab, words: str, scope: str, point: Point) -> list[Record]:
    """A record for every model; a single one without accuracies where it was refused."""
    own: Record = {**about(lab), "way": words, "scope": scope}
    spent: Record = {"owner_seconds": point.seconds, "refused": point.refused}
    if point.refused:
        return [{**own, "threshold": None, "dampening": None, "model": "", **accuracies(None), **spent}]
    return [
        {
            **own,
            "threshold": point.thresholds[row.model],
            "dampening": point.dampenings[row.model],
            "model": row.model,
            **accuracies(row),
            **spent,
        }
        for row in point.rows
    ]


def draw(records: Sequence[Record]) -> Figure:
    """Both accuracies for each scope, and the owners' time beside that of retraining."""
    ways = [way for way in distinct(records, "way") if way not in LEVELS]
    figure, axes = panels(11, 4.4, 3)
    for ax, column, words in zip(axes[:2], ("forget", "retained"), (FORGOTTEN, KEPT), strict=True):
        for way in LEVELS:
            level(ax, values([r for r in records if r["way"] == way], column), LOOKS[way])
        for i, way in enumerate(ways):
            _accuracies(ax, i, [r for r in records if r["way"] == way], column)
        percent_axis(ax, values(records, column))
        ax.set_ylabel(words)
        _named(ax, ways)
    again = [RETRAINED] if values([r for r in records if r["way"] == RETRAINED], "owner_seconds") else []
    for i, way in enumerate([*ways, *again]):
        _seconds(axes[2], i, [r for r in records if r["way"] == way], GREEN if way == RETRAINED else BLUE)
    axes[2].set_ylabel("owners' computing time (s)")
    axes[2].margins(y=0.12)
    _named(axes[2], [*ways, *again])
    refused = [way for way in ways if any(r["way"] == way and r["refused"] for r in records)]
    head(figure, title_of(records), f"refused: {', '.join(refused)}" if refused else "")
    handles = [level_handle(LOOKS[way]) for way in LEVELS if any(r["way"] == way for r in records)]
    marks = [
        Line2D([], [], color=BLUE, linewidth=3, label="ours: mean"),
        Line2D([], [], **_MODEL, label="a model"),
    ]
    legend(figure, [*marks, *handles])
    return figure


_MODEL: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 4.5, "alpha": 0.6, "linestyle": "none"}


def _named(ax: Axes, names: Sequence[str]) -> None:
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="x")


def _accuracies(ax: Axes, at: int, own: Sequence[Record], column: str) -> None:
    if any(r["refused"] for r in own):
        where = ax.get_xaxis_transform()
        ax.text(at, 0.5, "refused", rotation=90, ha="center", va="center", transform=where)
        return
    found = values(own, column)
    if found:
        mean = 100 * fmean(found)
        ax.plot([at - 0.3, at + 0.3], [mean, mean], color=BLUE, linewidth=3, zorder=3, solid_capstyle="butt")
        spread = [at + 0.4 * (k / max(1, len(found) - 1) - 0.5) for k in range(len(found))]
        ax.plot(spread, [100 * v for v in found], zorder=4, **_MODEL)


def _seconds(ax: Axes, at: int, own: Sequence[Record], colour: str) -> None:
    refused, spent = any(r["refused"] for r in own), values(own, "owner_seconds")
    if spent:
        ax.bar(at, spent[0], width=0.5, color="white" if refused else colour, alpha=0.55, edgecolor=GREY)
        words = f"{spent[0]:.3g} s" + ("\n(refused)" if refused else "")
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
        ax.annotate(words, (at, spent[0]), xytext=(0, 3), **style)


def table(records: Sequence[Record]) -> list[Record]:
    """A row for each scope: means and the worst over the affected models, and the owners' seconds."""
    rows: list[Record] = []
    for name in distinct(records, "experiment"):
        mine = [r for r in records if r["experiment"] == name]
        for way in distinct(mine, "way"):
            own = [r for r in mine if r["way"] == way]
            forget, kept = values(own, "forget"), values(own, "retained")
            rows.append(
                {
                    "experiment": name,
                    "way": way,
                    "scope": own[0]["scope"],
                    "t": ", ".join(f"{t:g}" for t in dict.fromkeys(values(own, "threshold"))),
                    "forget: mean": mean_of(own, "forget"),
                    "forget: worst": max(forget, default=None),
                    "retained: mean": mean_of(own, "retained"),
                    "retained: worst": min(kept, default=None),
                    "owner_seconds": own[0]["owner_seconds"],
                    "refused": "yes" if own[0]["refused"] else "",
                }
            )
    return rows


def said(records: Sequence[Record]) -> list[str]:
    """What the paper's code changes."""
    return ["paper: its code changes the head alone (the layers it calls train_layer)"]


PICTURE = Picture(
    about="head against the last block with it and all layers: both accuracies, and the owners' time",
    unfit=lambda scenario: "",
    labs=itself,
    measure=measure,
    draw=draw,
    table=table,
    said=said,
)
