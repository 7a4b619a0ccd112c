"""What the threshold does: ours and the paper's settings over a grid of t.

Shows: see `curves`; bands reach from the worst model to the best. The dampening is 1 on the lines. Does not
show what calibration would say to a t of the grid: each is taken whatever it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

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
from simulations.figures.inherited.lab import Lab, Trial, fixed, trial_of_ours
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.records import Record, distinct
from simulations.inheritance.methods import Applied, Bench, paper
from simulations.inheritance.world import World

WAYS = ("ours", "paper")


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Both ways at every t, what calibration chose, and the models before and retrained."""
    records, hand, divisor = reference(lab), lab.config.paper_threshold, lab.config.paper_divisor
    settings = replace(lab.settings, threshold=None)
    trials = [("ours", CALIBRATION, trial_of_ours("ours, calibrated", settings))]
    for t in grid.thresholds:
        trials.append(("ours", "", trial_of_ours(f"ours at t = {t:g}", fixed(settings, t))))
    for t in sorted({*grid.thresholds, hand}):
        what = {"method": "paper", "threshold": t, "divisor": divisor}
        trial = Trial(f"the paper's settings at t = {t:g}", what, partial(_paper, threshold=t))
        trials.append(("paper", BY_HAND if t == hand else "", trial))
    points = lab.points([trial for _, _, trial in trials])
    for (way, chosen, _), point in zip(trials, points, strict=True):
        records += of_point(lab, way, point, chosen)
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
