"""What the threshold does: ours and the paper's settings over a grid of t.

Shows: see `curves`; bands reach from the worst model to the best. The dampening is 1 on the lines. Does not
show what calibration would say to a t of the grid: each is taken whatever it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from simulations.figures.inherited.curves import (
    BY_HAND,
    CALIBRATION,
    against_t,
    calibrated,
    of_point,
    reference,
    table,
)
from simulations.figures.inherited.drawing import LOOKS
from simulations.figures.inherited.lab import Lab, decided_by, fixed
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.records import Record, distinct
from simulations.inheritance.methods import Applied, Bench, ours, paper
from simulations.inheritance.world import World

WAYS = ("ours", "paper")


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Both ways at every t, what calibration chose, and the models before and retrained."""
    records, hand = reference(lab), lab.config.paper_threshold
    settings = replace(lab.settings, threshold=None)
    point = lab.point(decided_by("ours", settings), lambda bench: [ours(bench, settings)])
    records += of_point(lab, "ours", point, CALIBRATION)
    for i, t in enumerate(grid.thresholds, start=1):
        lab.tell(f"{lab.name}: ours at t = {t:g} ({i} of {len(grid.thresholds)})")
        at = fixed(settings, t)
        records += of_point(lab, "ours", lab.point(decided_by("ours", at), lambda b, s=at: [ours(b, s)]))  # type: ignore[misc]
    for i, t in enumerate(tried := sorted({*grid.thresholds, hand}), start=1):
        lab.tell(f"{lab.name}: the paper's settings at t = {t:g} ({i} of {len(tried)})")
        what = {"method": "paper", "threshold": t, "divisor": lab.config.paper_divisor}
        point = lab.point(what, lambda b, t=t: [_paper(b, t)])  # type: ignore[misc]
        records += of_point(lab, "paper", point, BY_HAND if t == hand else "")
    return records


def _paper(bench: Bench, threshold: float) -> Applied:
    world = World(replace(bench.world.config, paper_threshold=threshold))
    return paper(replace(bench, world=world))


def draw(records: Sequence[Record]) -> Figure:
    """Both accuracies of both ways against t."""
    return against_t(records, {way: LOOKS[way] for way in WAYS})


def said(records: Sequence[Record]) -> list[str]:
    """What calibration chose, beside the paper's hand-set values."""
    chosen = [
        f"{name}: {calibrated([r for r in records if r['experiment'] == name])}"
        for name in distinct(records, "experiment")
    ]
    return [
        "paper: t is set by hand for each network (about 100 for ResNet and ViT, 300 for VGG and DenseNet)",
        *chosen,
    ]


PICTURE = Picture(
    about="effect of the threshold t on both accuracies, ours and the paper's settings side by side",
    unfit=lambda scenario: "",
    labs=itself,
    measure=measure,
    draw=draw,
    table=table,
    said=said,
)
