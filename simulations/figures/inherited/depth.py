"""How far inheritance carries what is learned, and what is forgotten: accuracy against the depth of a model.

Shows: test accuracy on the labels to forget (left) and on the others that a model knows (right) against how
many models were passed on before it, by the longest way; where several models are equally deep, a line
through their mean with a band from the worst to the best. Models that never learned what is forgotten have no
mark on the left, and only "before" on the right. A method that refused has no line. Does not show the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.figures.inherited.claims import SEVERAL, SINGLE, compared
from simulations.figures.inherited.drawing import (
    FORGOTTEN,
    KEPT,
    banded,
    head,
    legend,
    line_handle,
    looks_of,
    panels,
    percent_axis,
    title_of,
)
from simulations.figures.inherited.every_model import refusals, table
from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.records import Record, distinct, every_row, generations, values
from simulations.scenarios.contract import Scenario

LEAST = 4
"""Generations below which there is no depth to speak of."""


def unfit(scenario: Scenario) -> str:
    """Flat graphs have nothing to show."""
    deep = 1 + max(generations(scenario).values())
    return "" if deep >= LEAST else f"its graph has {deep} generations, and the picture needs {LEAST}"


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Every model before, after each method, and retrained."""
    return every_row(lab, lab.result())


def draw(records: Sequence[Record]) -> Figure:
    """Both accuracies against the depth of the models."""
    looks = looks_of(distinct(records, "method"))
    figure, axes = panels(11, 4.8, 2, sharex=True)
    for ax, column, words in zip(axes, ("forget", "retained"), (FORGOTTEN, KEPT), strict=True):
        for way, look in looks.items():
            banded(ax, by_depth([r for r in records if r["method"] == way], column), look)
        percent_axis(ax, values(records, column))
        ax.set(xlabel="depth: models passed on before", ylabel=words)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    head(figure, title_of(records), refusals(records))
    shown = [w for w in looks if values([r for r in records if r["method"] == w], "retained")]
    legend(figure, [line_handle(looks[w]) for w in shown])
    return figure


def by_depth(records: Sequence[Record], column: str) -> dict[float, list[float]]:
    """Depth to the accuracies measured there."""
    found: dict[float, list[float]] = {}
    for record in records:
        depth = record["generation"]
        assert isinstance(depth, int)
        found.setdefault(depth, []).extend(values([record], column))
    return found


def said(records: Sequence[Record]) -> list[str]:
    """The paper's accuracies beside ours, over all models of the chains."""
    return compared(records, SINGLE if records[0]["forgotten_labels"] == 1 else SEVERAL)


PICTURE = Picture(
    about="depth of inheritance: both accuracies against how many models were passed on before",
    unfit=unfit,
    labs=itself,
    measure=measure,
    draw=draw,
    table=table,
    said=said,
)
