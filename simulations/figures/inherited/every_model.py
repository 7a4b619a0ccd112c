"""Every model of a graph before and after each way to forget: the pictures of one class and of several.

Shows: test accuracy on the labels to forget (left) and on the others that the model knows (right); a thin
line leads from what it was to what it became. Models that did not inherit what is forgotten are there in
grey: no method changes them. A method that refused has no mark. Does not show single labels, or what features
know.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_unlearn.figures import BLACK, GREY
from simulations.figures.inherited.claims import compared
from simulations.figures.inherited.drawing import (
    FORGOTTEN,
    KEPT,
    Look,
    head,
    legend,
    look_of,
    looks_of,
    panels,
    percent_axis,
    title_of,
)
from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.records import Record, distinct, every_row, one, values
from simulations.inheritance.results import BEFORE

ROW, MOST_INCHES = 0.07, 40.0
"""Inches a model gets per way, and the tallest picture."""


def picture(about: str, *, several: bool, claim: tuple[float, float]) -> Picture:
    """The picture for requests for one class, or for several.

    Args:
        about: What it shows, in a sentence.
        several: Whether it is for requests for several.
        claim: The paper's accuracies on forgotten and other labels.
    """
    return Picture(
        about=about,
        unfit=lambda scenario: _unfit(len(scenario.forget), several),
        labs=itself,
        measure=_measure,
        draw=draw,
        table=table,
        said=lambda records: compared(records, claim),
        overview=overview,
    )


def _unfit(count: int, several: bool) -> str:
    if (count > 1) == several:
        return ""
    found = "one class is" if count == 1 else f"{count} classes are"
    return f"{found} forgotten, see {'single-class' if several else 'several-classes'}"


def _measure(lab: Lab, grid: Grid) -> list[Record]:
    return every_row(lab, lab.result())


def draw(records: Sequence[Record]) -> Figure:
    """Every model of one experiment, in chronological order from the top."""
    refused = refusals(records)
    return _dumbbells(records, "model", title_of(records), refused)


def overview(records: Sequence[Record]) -> Figure:
    """Every experiment: of its affected models, the worst forgotten accuracy and the mean retained one."""
    rows: list[Record] = []
    for name in distinct(records, "experiment"):
        for way in distinct(records, "method"):
            own = [r for r in records if (r["experiment"], r["method"], r["affected"]) == (name, way, True)]
            forget, kept = values(own, "forget"), values(own, "retained")
            rows.append(
                {
                    "experiment": name,
                    "affected": True,
                    "method": way,
                    "forget": max(forget, default=None),
                    "retained": fmean(kept) if kept else None,
                }
            )
    note = "left: the worst of the affected models, right: their mean" + "".join(
        f"; {text}" for text in [refusals(records)] if text
    )
    return _dumbbells(rows, "experiment", "Every experiment", note)


def refusals(records: Sequence[Record]) -> str:
    """Which methods refused where."""
    found = {(str(r["method"]), str(r["experiment"])) for r in records if r.get("refused")}
    return "; ".join(f"{way} refused in {name}: nothing was changed" for way, name in sorted(found))


def _dumbbells(records: Sequence[Record], key: str, title: str, note: str) -> Figure:
    names, ways = distinct(records, key), distinct(records, "method")
    looks = looks_of(ways)
    longest = max(len(n) for n in names)
    height = min(MOST_INCHES, 1.9 + max(0.2, ROW * (len(ways) + 1)) * len(names))
    figure, axes = panels(9 + 0.075 * max(0, longest - 8), height, 2, sharey=True)
    for ax, column, words in zip(axes, ("forget", "retained"), (FORGOTTEN, KEPT), strict=True):
        _panel(ax, records, key, column, looks)
        ax.set_xlabel(words, fontsize=10)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        hit = any(r["affected"] for r in records if r[key] == name)
        label.set_color(BLACK if hit else GREY)
    head(figure, title, note)
    shown = [w for w in ways if any(r["method"] == w and values([r], "retained") for r in records)]
    legend(figure, [Line2D([], [], label=looks[w].label, **looks[w].mark) for w in shown])
    return figure


def _panel(ax: Axes, records: Sequence[Record], key: str, column: str, looks: dict[str, Look]) -> None:
    """A line of marks for each name, the ways a little under one another so that none hides another."""
    names, ways = distinct(records, key), list(looks)
    found = {(str(r[key]), str(r["method"])): values([r], column) for r in records}
    step = 0.74 / max(1, len(ways))
    for i, name in enumerate(names):
        if i % 2:
            ax.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        start = found.get((name, BEFORE))
        for k, way in enumerate(ways):
            for value in found.get((name, way), []):
                y = i + (k - (len(ways) - 1) / 2) * step
                if start:
                    ax.plot(
                        [100 * start[0], 100 * value],
                        [y, y],
                        color=looks[way].colour,
                        linewidth=1,
                        alpha=0.45,
                    )
                ax.plot([100 * value], [y], **looks[way].mark)
    ax.grid(visible=False, axis="y")
    percent_axis(ax, values(records, column), along="x")


def table(records: Sequence[Record]) -> list[Record]:
    """A row for every model: both accuracies for every way, forgotten first."""
    out = []
    ways = distinct(records, "method")
    for name in distinct(records, "experiment"):
        own = [r for r in records if r["experiment"] == name]
        for model in distinct(own, "model"):
            row: Record = {"experiment": name, "model": model}
            for column in ("forget", "retained"):
                for way in ways:
                    found = one(own, lambda r, m=model, w=way: (r["model"], r["method"]) == (m, w))  # type: ignore[misc]
                    row[f"{column}: {look_of(way).label}"] = found[column] if found else None
            out.append(row)
    return out


__all__ = ["draw", "overview", "picture", "table"]
