"""Where the models of a run lie in its picture: by round from left to right, by client from top to bottom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fl_unlearn.figures import GLOBAL_KINDS, UPDATE_LEAD, natural_key
from simulations.compare.results import Graph

DRAWN = 600
"""Most models that are drawn: of a longer run, its first rounds are."""

STEP, LANE, LEFT, TOP = 56.0, 26.0, 116.0, 26.0
_APART = 7.0  # models of one owner and round


@dataclass(frozen=True)
class Model:
    """A model of the run."""

    name: str
    kind: str
    x: float
    y: float
    affected: bool


@dataclass(frozen=True)
class LineageChart:
    """The picture, and what it shows in numbers.

    Attributes:
        width: Of the picture.
        height: Of the picture.
        models: What is drawn.
        edges: Coordinates from parent to child, and whether what is to be forgotten is inherited along it.
        lanes: Name and height of each row.
        rounds: Round and place of each column.
        total: How many models there are.
        affected: How many of them inherit from what is to be forgotten.
        cut: The last round that is drawn, where not all are; else None.
    """

    width: float
    height: float
    models: list[Model]
    edges: list[tuple[float, float, float, float, bool]]
    lanes: list[tuple[str, float]]
    rounds: list[tuple[int, float]]
    total: int
    affected: int
    cut: int | None


def lineage_chart(graph: Graph) -> LineageChart | None:
    """The picture, or None for a graph without models."""
    if not graph.nodes:
        return None
    last = max(n[1] for n in graph.nodes.values())
    shown = _last_shown(graph)
    nodes = {name: n for name, n in graph.nodes.items() if n[1] <= shown}
    owners = sorted({owner for _, _, owner, _ in nodes.values() if owner}, key=natural_key)
    lane_of = {"": TOP} | {owner: TOP + LANE * (i + 1) for i, owner in enumerate(owners)}
    first = min(n[1] for n in nodes.values())
    met: Counter[tuple[str, float]] = Counter()
    models = {}
    for name, (kind, round_, owner, affected) in nodes.items():
        lead = 0.0 if kind in GLOBAL_KINDS else UPDATE_LEAD
        x = round(LEFT + STEP * (round_ - first - lead), 1)
        models[name] = Model(name, kind, x, lane_of[owner] + _APART * met[owner, x], affected)
        met[owner, x] += 1
    edges = [
        (a.x, a.y, b.x, b.y, a.affected and b.affected)
        for a, b in ((models.get(p), models.get(k)) for p, k in graph.edges)
        if a is not None and b is not None
    ]
    rounds = range(first, shown + 1)
    return LineageChart(
        LEFT + STEP * (len(rounds) - 1) + 40,
        TOP + LANE * (len(owners) + 1) + 14,
        list(models.values()),
        edges,
        [("global" if not o else f"client {o}", y) for o, y in lane_of.items()],
        [(r, LEFT + STEP * (r - first)) for r in rounds],
        len(graph.nodes),
        sum(n[3] for n in graph.nodes.values()),
        shown if shown < last else None,
    )


def _last_shown(graph: Graph) -> int:
    """The last round up to which no more than `DRAWN` models lie; the first round in any case."""
    sizes = Counter(n[1] for n in graph.nodes.values())
    order, sum_ = sorted(sizes), 0
    shown = order[0]
    for r in order:
        sum_ += sizes[r]
        if sum_ > DRAWN:
            break
        shown = r
    return shown
