"""What a figure of this package is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.records import Record
from simulations.scenarios.contract import Scenario


@dataclass(frozen=True)
class Grid:
    """What is tried where a figure tries several values.

    Attributes:
        thresholds: Values of t.
        overlaps: Shares of labels that owners have in common.
    """

    thresholds: tuple[float, ...] = (0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 100.0, 300.0)
    overlaps: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Picture:
    """One figure with its table.

    Attributes:
        about: What it shows, in a sentence.
        unfit: Why a scenario cannot be in it; "": it can.
        labs: The experiments that it trains for one config, to be checked before any is.
        measure: Trains and measures what is not there yet, and gives the records.
        draw: Draws the records of one experiment.
        table: The rows of the Markdown table, of the records of all experiments.
        said: What is printed under it: the paper's claim beside ours.
        overview: Draws the records of several experiments in one picture; None: there is none.
    """

    about: str
    unfit: Callable[[Scenario], str]
    labs: Callable[[Lab, Grid], list[Lab]]
    measure: Callable[[Lab, Grid], list[Record]]
    draw: Callable[[Sequence[Record]], Figure]
    table: Callable[[Sequence[Record]], list[Record]]
    said: Callable[[Sequence[Record]], list[str]]
    overview: Callable[[Sequence[Record]], Figure] | None = None


def itself(lab: Lab, grid: Grid) -> list[Lab]:
    """For figures that need one training."""
    return [lab]
