"""How the holders' Fishers are merged: maximum, mean, sum, the reference code's rule, or not at all.

Shows: see `curves`, a line for each rule, with ours' Fishers and reference throughout; only merging differs.
"max-divided" divides the maximum by 5 once for each further source and holder. "sequential" does not merge
(`holders`): each holder's update is built from its own forget Fisher and applied to what descends from its
first model, one after another; all are built from the models as trained. Does not show the cost: every rule
needs the same answers from the owners, and "sequential" as many updates as there are holders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from fl_unlearn.types import UnlearnSettings
from simulations.figures.inherited.curves import (
    CALIBRATION,
    LEVELS,
    against_t,
    calibrated,
    of_point,
    reference,
    table,
)
from simulations.figures.inherited.drawing import Look
from simulations.figures.inherited.holders import one_after_another
from simulations.figures.inherited.lab import Lab, Trial, decided_by, fixed, trial_of_ours
from simulations.figures.inherited.picture import Grid, Picture, itself
from simulations.figures.inherited.records import Record, distinct
from simulations.scenarios.contract import Scenario

SEQUENTIAL = "sequential"
LOOKS = {
    "max": Look("max", "#0072B2", "o"),
    "mean": Look("mean", "#E69F00", "^", "--"),
    "sum": Look("sum", "#009E73", "v", "-."),
    "max-divided": Look("max-divided (reference code)", "#D55E00", "s", ":"),
    SEQUENTIAL: Look("sequential (not merged)", "#CC79A7", "X", "--"),
}
"""Way to look: the merge rules, and doing without."""


def roots(scenario: Scenario) -> list[str]:
    """The first models that learned what is to be forgotten: affected ones none of whose parents is."""
    affected = set(scenario.affected())
    return [m.name for m in scenario.models if m.name in affected and not affected.intersection(m.parents)]


def unfit(scenario: Scenario) -> str:
    """Only where several models learned it first, there is something to merge."""
    found = roots(scenario)
    return (
        ""
        if len(found) > 1
        else f"there is nothing to merge: {found[0]} alone learned first what is forgotten"
    )


def measure(lab: Lab, grid: Grid) -> list[Record]:
    """Every rule at every t and calibrated, and the models before and retrained."""
    trials = []
    for way in LOOKS:
        rule = lab.settings.merge_rule if way == SEQUENTIAL else way
        settings = replace(lab.settings, merge_rule=rule, threshold=None)
        trials.append((way, CALIBRATION, _trial(way, f"{way}, calibrated", settings)))
        trials += [(way, "", _trial(way, f"{way} at t = {t:g}", fixed(settings, t))) for t in grid.thresholds]
    records = reference(lab)
    points = lab.points([trial for _, _, trial in trials])
    for (way, chosen, _), point in zip(trials, points, strict=True):
        records += of_point(lab, way, point, chosen)
    return records


def _trial(way: str, label: str, settings: UnlearnSettings) -> Trial:
    if way == SEQUENTIAL:
        return Trial(label, decided_by(way, settings), partial(one_after_another, settings=settings))
    return trial_of_ours(label, settings)


def draw(records: Sequence[Record]) -> Figure:
    """Both accuracies against t, a line for each rule."""
    return against_t(
        records, {way: LOOKS[way] for way in distinct(records, "way") if way not in LEVELS}, band=False
    )


def said(records: Sequence[Record]) -> list[str]:
    """What calibration chose for each rule."""
    lines = []
    for name in distinct(records, "experiment"):
        lines.append(f"{name}: {calibrated([r for r in records if r['experiment'] == name])}")
    return [
        "paper: the element-wise maximum (its code divides it by a hand-set constant for each further root)",
        *lines,
    ]


PICTURE = Picture(
    about="ablation of MFIM: max, mean, sum, max-divided, and one holder's update after another",
    unfit=unfit,
    labs=itself,
    measure=measure,
    draw=draw,
    table=table,
    said=said,
)
