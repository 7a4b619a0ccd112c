"""How much of their labels the owners have in common: accuracy against the label overlap.

Shows: test accuracy of the affected models at each overlap, on the labels to forget (left) and on the others
that a model knows (right), means, with a band from the worst to the best for ours; every point is a graph
trained for it. The labels to forget stay with their holders whatever the overlap is. A request that was
refused has no point. Does not show how skewed the numbers of samples are: that is `partition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

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
from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.picture import Grid, Picture
from simulations.figures.inherited.records import Record, distinct, every_row, mean_of, values


def labs(lab: Lab, grid: Grid) -> list[Lab]:
    """An experiment for each overlap."""
    return [
        replace(
            lab,
            config=replace(lab.config, overlap=share),
            folder=lab.folder.with_name(f"{lab.folder.name}-overlap-{share:g}"),
        )
        for share in grid.overlaps
    ]


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Every model at every overlap, before, after each method, and retrained."""
    records: list[Record] = []
    for i, one in enumerate(labs(lab, grid), start=1):
        share = one.config.overlap
        lab.tell(f"{lab.name}: label overlap {share:g} ({i} of {len(grid.overlaps)})")
        records += [{**r, "overlap": share} for r in every_row(one, one.result()) if r["affected"]]
    return records


def draw(records: Sequence[Record]) -> Figure:
    """Both accuracies against the overlap, a line for each way."""
    looks = looks_of(distinct(records, "method"))
    figure, axes = panels(11, 4.8, 2)
    for ax, column, words in zip(axes, ("forget", "retained"), (FORGOTTEN, KEPT), strict=True):
        for way, look in looks.items():
            banded(
                ax, by_overlap([r for r in records if r["method"] == way], column), look, band=way == "ours"
            )
        percent_axis(ax, values(records, column))
        ax.set_xticks(sorted(set(values(records, "overlap"))))
        ax.set(xlabel="labels that owners have in common (share)", ylabel=words)
    head(figure, title_of(records), refusals(records))
    legend(figure, [line_handle(look) for look in looks.values()])
    return figure


def by_overlap(records: Sequence[Record], column: str) -> dict[float, list[float]]:
    """Overlap to the accuracies measured there."""
    found: dict[float, list[float]] = {}
    for record in records:
        share = record["overlap"]
        assert isinstance(share, float)
        found.setdefault(share, []).extend(values([record], column))
    return found


def refusals(records: Sequence[Record]) -> str:
    """Which methods refused at which overlap."""
    found = dict.fromkeys((r["method"], r["overlap"]) for r in records if r["refused"])
    return "; ".join(f"{way} refused at overlap {share:g}" for way, share in found)


def table(records: Sequence[Record]) -> list[Record]:
    """A row for each overlap and way: means over the affected models, and the worst of them."""
    rows: list[Record] = []
    for name in distinct(records, "experiment"):
        for share in dict.fromkeys(r["overlap"] for r in records if r["experiment"] == name):
            for way in distinct(records, "method"):
                own = [
                    r for r in records if (r["experiment"], r["overlap"], r["method"]) == (name, share, way)
                ]
                rows.append(
                    {
                        "experiment": name,
                        "overlap": share,
                        "way": way,
                        "forget: mean": mean_of(own, "forget"),
                        "forget: worst": max(values(own, "forget"), default=None),
                        "retained: mean": mean_of(own, "retained"),
                        "retained: worst": min(values(own, "retained"), default=None),
                        "refused": "yes" if own and own[0]["refused"] else "",
                    }
                )
    return rows


def said(records: Sequence[Record]) -> list[str]:
    """Nothing of the paper's can be put beside it."""
    return [
        "paper: its non-IID setting has owners share only some labels; there is no number to compare with"
    ]


PICTURE = Picture(
    about="label overlap between owners, 0 to 1: both accuracies, every point a training of its own",
    unfit=lambda scenario: "",
    labs=labs,
    measure=measure,
    draw=draw,
    table=table,
    said=said,
)
