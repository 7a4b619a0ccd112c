"""Where things lie in the pictures of a comparison; the templates draw them, the style sheet colours them.

Lengths are in the units of a picture's own view box, from the top left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fl_unlearn.types import ForgetRequest
from simulations.compare.results import COST, ORIGINAL, RETRAIN
from simulations.compare.sheet import REFERENCES, Cell, Sheet

FORGOTTEN = ("held-forget-accuracy", "forget-accuracy")
KEPT = ("held-retain-accuracy", "retain-accuracy")
"""Which columns the scatter takes: the first of which there is any value."""

LINE = 17  # height of a line of labels


# --------------------------------------------------------------------------- forgotten against kept
@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A strategy in the scatter; its label stands in a column at the right, joined by a line."""

    name: str
    x: float
    y: float
    label_y: float
    kind: str
    about: str


@dataclass(frozen=True)
class Scatter:
    """Accuracy on what was to be forgotten (up) against what was to be kept (right)."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str
    points: list[Point]
    cross: tuple[float, float] | None
    labels_x: float


def scatter(sheet: Sheet) -> Scatter | None:
    """The scatter, or None where one of the two was not measured."""
    x_key, y_key = (next((k for k in wanted if _any(sheet, k)), None) for wanted in (KEPT, FORGOTTEN))
    if x_key is None or y_key is None:
        return None
    c = sheet.comparison
    names = [s for s in c.strategies if _there(sheet, s, x_key) and _there(sheet, s, y_key)]
    if not names:
        return None
    where = {s: (100 * _mean(sheet, s, x_key), 100 * _mean(sheet, s, y_key)) for s in names}
    left, right, top = 62.0, 520.0, 14.0
    bottom = max(330.0, top + LINE * len(names))
    x_of, x_ticks = _axis([p[0] for p in where.values()], left, right)
    y_of, y_ticks = _axis([p[1] for p in where.values()], bottom, top)
    places = {
        s: (_along(x, *x_of, left, right), _along(y, *y_of, bottom, top)) for s, (x, y) in where.items()
    }
    lines = _untangled([places[s] for s in names], _spread([places[s][1] for s in names], top, bottom), right)
    titles = {k.key: k.title for k in c.columns}

    def about(s: str) -> str:
        return f"{s}: " + ", ".join(f"{titles[k]} {sheet.cell(s, k).full} %" for k in (x_key, y_key))

    return Scatter(
        width=730,
        height=bottom + 48,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_title=f"{titles[x_key]} (%)",
        y_title=f"{titles[y_key]} (%)",
        points=[Point(s, *places[s], lines[i], _kind(s), about(s)) for i, s in enumerate(names)],
        cross=places.get(RETRAIN),
        labels_x=right + 46,
    )


def _any(sheet: Sheet, key: str) -> bool:
    there = any(k.key == key for k in sheet.comparison.columns)
    return there and any(_there(sheet, s, key) for s in sheet.comparison.strategies)


def _there(sheet: Sheet, strategy: str, key: str) -> bool:
    return sheet.cell(strategy, key).mean is not None


def _mean(sheet: Sheet, strategy: str, key: str) -> float:
    return sheet.cell(strategy, key).mean or 0.0


def _kind(strategy: str) -> str:
    return strategy if strategy in (*REFERENCES, "mask") else "strategy"


def _along(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (value - low) / (high - low) * (end - start), 1)


def _axis(values: Sequence[float], start: float, end: float) -> tuple[tuple[float, float], list[Tick]]:
    """The range of an axis of per cents with some room, and its ticks at round numbers."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 1.0)
    low, high = low - room, high + room
    rough = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    first = math.ceil(max(low, 0.0) / step)
    marks = [step * n for n in range(first, math.floor(min(high, 100.0) / step) + 1)]
    return (low, high), [Tick(_along(m, low, high, start, end), f"{m:g}") for m in marks]


def _spread(ys: Sequence[float], top: float, bottom: float) -> list[float]:
    """A line for each label, near its point, none on another: from the top down, then pushed back up."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    lines = [0.0] * len(ys)
    last = top - LINE / 2
    for i in order:
        lines[i] = last = max(ys[i], last + LINE)
    limit = bottom + LINE / 2
    for i in reversed(order):
        lines[i] = limit = min(lines[i], limit - LINE)
    return [round(y, 1) for y in lines]


def _untangled(points: Sequence[tuple[float, float]], lines: list[float], x: float) -> list[float]:
    """The same heights, exchanged until no two lines from a point to its label at ``x`` cross.

    Uncrossing two lines always shortens them together, so this ends.
    """

    def length(i: int, j: int) -> float:
        return math.dist(points[i], (x, lines[j]))

    done = False
    while not done:
        done = True
        for i, j in itertools.combinations(range(len(points)), 2):
            if length(i, j) + length(j, i) < length(i, i) + length(j, j) - 1e-9:
                lines[i], lines[j] = lines[j], lines[i]
                done = False
    return lines


# --------------------------------------------------------------------------- class by class
@dataclass(frozen=True)
class ClassBar:
    """One class: the cells of the original, the strategy and the retrained model."""

    label: int
    forgotten: bool
    x: float
    before: Cell
    after: Cell
    retrained: Cell


@dataclass(frozen=True)
class ClassChart:
    """Accuracy on each class before and after one strategy."""

    strategy: str
    width: float
    step: float
    bars: list[ClassBar]


def class_charts(sheet: Sheet) -> list[ClassChart]:
    """One chart per strategy that has values by class, retraining among them; the original is in each."""
    c = sheet.comparison
    forgotten = set(ForgetRequest.from_json(c.request).classes)
    labels, missing = c.labels, Cell(None)
    step = max(34.0, 560.0 / max(len(labels), 1))
    out = []
    for s in c.strategies:
        if s == ORIGINAL or not any(_there(sheet, s, f"class-{k}") for k in labels):
            continue
        bars = [
            ClassBar(
                label,
                label in forgotten,
                round(44 + i * step, 1),
                *(
                    sheet.cell(n, f"class-{label}") if n in c.strategies else missing
                    for n in (ORIGINAL, s, RETRAIN)
                ),
            )
            for i, label in enumerate(labels)
        ]
        out.append(ClassChart(s, 56 + step * len(labels), step, bars))
    return out


# --------------------------------------------------------------------------- cost
@dataclass(frozen=True)
class Bar:
    """One cost of one strategy: its cell, and how long its bar is, in per cent of the longest."""

    cell: Cell
    length: float


@dataclass(frozen=True)
class CostChart:
    """Bars by strategy and cost, and where retraining's end, in per cent."""

    titles: list[str]
    rows: list[tuple[str, list[Bar]]]
    retrained: list[float | None]


def cost_chart(sheet: Sheet) -> CostChart | None:
    """The bars, or None where no cost was measured."""
    c = sheet.comparison
    names = [s for s in c.strategies if s != ORIGINAL]
    keys = [k for k in COST if k.key in sheet.units and any(_there(sheet, s, k.key) for s in names)]
    if not keys:
        return None
    longest = {k.key: max(_mean(sheet, s, k.key) for s in names) for k in keys}

    def length(s: str, key: str) -> float:
        return round(100 * _mean(sheet, s, key) / longest[key], 2) if longest[key] else 0.0

    titles = [f"{k.title}{f', {sheet.units[k.key]}' if sheet.units[k.key] else ''}" for k in keys]
    rows = [(s, [Bar(sheet.cell(s, k.key), length(s, k.key)) for k in keys]) for s in names]
    there = [RETRAIN in names and _there(sheet, RETRAIN, k.key) for k in keys]
    return CostChart(
        titles, rows, [length(RETRAIN, k.key) if t else None for k, t in zip(keys, there, strict=True)]
    )
