"""What the pictures have in common: looks, panels, lines with bands, files.

Colours are those of Okabe and Ito (2008), which remain distinct for colour-blind readers; markers and dashes
repeat what they say. Figures are drawn on the Agg canvas: pyplot and any display stay untouched.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_unlearn.figures import BLACK, BLUE, GREEN, GREY, VERMILLION
from simulations.figures.inherited.records import Record, distinct
from simulations.inheritance.results import BEFORE, RETRAINED


@dataclass(frozen=True)
class Look:
    """How one way is drawn.

    Attributes:
        label: Its words in the legend.
        colour: Of its lines and marks.
        marker: Of its points.
        line: Its dashes.
        filled: Whether its marks are.
        size: Of its marks in points; the smaller, the later it is drawn, so that all can be seen where
            several ways give the same.
    """

    label: str
    colour: str
    marker: str
    line: str = "-"
    filled: bool = True
    size: float = 5.0

    @property
    def style(self) -> dict[str, Any]:
        """For `Axes.plot`."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "markerfacecolor": face,
            "markersize": self.size,
            "zorder": 4 - self.size / 10,
        }

    @property
    def mark(self) -> dict[str, Any]:
        """For `Axes.plot`: only marks, all ways' of the same size."""
        return {**self.style, "linestyle": "none", "markersize": 4.5}


LOOKS = {
    BEFORE: Look("before", GREY, "o", "--", filled=False, size=7.0),
    "ours": Look("ours", BLUE, "o", size=3.5),
    "paper": Look("the paper's settings", VERMILLION, "s", "-.", size=5.5),
    RETRAINED: Look("retrained", GREEN, "D", ":", filled=False, size=8.5),
}
_SPARE = [("#E69F00", "^"), ("#CC79A7", "v"), ("#56B4E9", "P"), ("#B8A800", "X"), (BLACK, "*")]
FORGOTTEN, KEPT = "labels to forget: test accuracy (%)", "all other labels: test accuracy (%)"


def look_of(way: str, position: int = 0) -> Look:
    """A way's look; one that is not in `LOOKS` gets the spare one of its ``position``."""
    if way in LOOKS:
        return LOOKS[way]
    colour, marker = _SPARE[position % len(_SPARE)]
    return Look(way, colour, marker)


def looks_of(ways: Sequence[str]) -> dict[str, Look]:
    """Way to look."""
    spare = [way for way in ways if way not in LOOKS]
    return {way: look_of(way, spare.index(way) if way in spare else 0) for way in ways}


def panels(width: float, height: float, count: int, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, count, squeeze=False, **shared)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E6E6E6", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
    return figure, axes


def head(figure: Figure, title: str, note: str = "") -> None:
    """A title over all panels, and a line of smaller words under it."""
    width = int(figure.get_figwidth() * 12)
    kept = note.replace(" = ", "\u00a0=\u00a0").replace(" (", "\u00a0(")  # "t = 3 (λ = 1)" stays on a line
    lines = textwrap.wrap(kept, width)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    if lines:
        figure.axes[0].set_title("\n".join(lines), fontsize=9, loc="left", x=0.0)


def legend(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend under the panels, where it hides no data."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def title_of(records: Sequence[Record]) -> str:
    """Which experiments records are of."""
    what = ", ".join(str(records[0][key]) for key in ("scenario", "dataset", "network"))
    return f"{', '.join(distinct(records, 'experiment'))} ({what})"


def percent_axis(ax: Axes, shares: Sequence[float], *, along: str = "y") -> None:
    """Limits in percent: 0 and 100 where the values come near, else some room around them."""
    low, high = min(shares, default=0.0) * 100, max(shares, default=1.0) * 100
    room = max(2.0, 0.08 * (high - low))
    low, high = max(low - room, -2.5), min(high + room, 102.5)
    if high - low < 10:
        low, high = max(-2.5, high - 10), max(high, 7.5)
    (ax.set_ylim if along == "y" else ax.set_xlim)(low, high)


def banded(ax: Axes, points: Mapping[float, Sequence[float]], look: Look, *, band: bool = True) -> None:
    """The mean at each x, and a band from the smallest value there to the largest; shares, in percent.

    Where there is no value, both have a gap.
    """
    xs, nan = sorted(points), [math.nan]
    low, mean, high = ([100 * end(points[x] or nan) for x in xs] for end in (min, fmean, max))
    size = look.size * min(1.0, math.sqrt(25 / max(1, len(xs))))
    ax.plot(xs, mean, linewidth=1.5, **{**look.style, "markersize": size})
    if band:
        ax.fill_between(xs, low, high, color=look.colour, alpha=0.13, linewidth=0)


def level(ax: Axes, shares: Sequence[float], look: Look) -> None:
    """A line across at the mean of these, to compare with."""
    if shares:
        ax.axhline(100 * fmean(shares), color=look.colour, linestyle=look.line, linewidth=1.4, zorder=2)


def level_handle(look: Look) -> Line2D:
    """A level's entry in a legend."""
    return Line2D([], [], color=look.colour, linestyle=look.line, linewidth=1.4, label=look.label)


def line_handle(look: Look) -> Line2D:
    """A line's entry in a legend."""
    return Line2D([], [], **look.style, linewidth=1.5, label=look.label)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a PNG and a PDF; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The files' name without its ending.
    """
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files
