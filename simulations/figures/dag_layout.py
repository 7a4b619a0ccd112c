"""Where the models of a graph are drawn: by stage from left to right, long graphs folded into rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

from fl_unlearn.plan import PlannedModel

Place = tuple[float, float]

STAGES = 10
"""Most stages side by side; a longer graph goes on in the next row, back from right to left, and so on."""

APART, BELOW = 1.7, 1.6
"""Between stages, and between models of one stage, in the units of the picture."""

RADIUS = 0.33
"""Of a model."""

_BENDS = (0.0, 0.2, -0.2, 0.35, -0.35, 0.5, -0.5)
_CLEAR = 0.14  # between an arrow and a model that it passes
_WORDS = 0.53  # from a model's centre to the middle of what is written below or above it
_WIDE = (-0.36, -0.18, 0.0, 0.18, 0.36)  # where an arrow could touch that


def graph_of(models: Iterable[PlannedModel]) -> nx.DiGraph:
    """Models, with an edge from each parent; ``weight`` is its share."""
    graph = nx.DiGraph()
    for model in models:
        graph.add_node(model.name)
        graph.add_weighted_edges_from((parent, model.name, w) for parent, w in model.parents.items())
    return graph


def places(graph: nx.DiGraph) -> dict[str, Place]:
    """Where each model stands, the first stage at the upper left.

    A model's stage is the length of the longest way to it. Models of one stage stand in the order of the
    graph, from top to bottom.
    """
    order = {name: i for i, name in enumerate(graph)}
    stages = [sorted(stage, key=order.__getitem__) for stage in nx.topological_generations(graph)]
    found: dict[str, Place] = {}
    top = 0.0
    for row, start in enumerate(range(0, len(stages), STAGES)):
        here = stages[start : start + STAGES]
        height = BELOW * (max(map(len, here)) - 1)
        for i, stage in enumerate(here):
            column = i if row % 2 == 0 else STAGES - 1 - i
            first = top - (height - BELOW * (len(stage) - 1)) / 2
            found |= {name: (APART * column, first - BELOW * j) for j, name in enumerate(stage)}
        top -= height + BELOW
    return found


def bend(source: str, target: str, at: Mapping[str, Place]) -> float:
    """How much the arrow between two models is bent (matplotlib's ``arc3``) so as to pass by the others."""
    others = [place for name, place in at.items() if name not in (source, target)]
    labels = [(x, y - _WORDS) for x, y in others]

    def clearance(rad: float) -> float:
        line = curve(at[source], at[target], rad)
        nearest = min((math.dist(p, o) for p in line for o in others), default=math.inf)
        words = min((math.dist(p, o) for p in line for o in labels), default=math.inf)
        return min(nearest - RADIUS - _CLEAR, words - _CLEAR)

    return next((rad for rad in _BENDS if clearance(rad) >= 0), max(_BENDS, key=clearance))


def word_places(at: Mapping[str, Place], bends: Mapping[tuple[str, str], float]) -> dict[str, Place]:
    """Where words to each model are written: below it, or above where only there no arrow crosses them."""
    arrows = [p for (a, b), rad in bends.items() for p in curve(at[a], at[b], rad)]

    def clear(place: Place) -> bool:
        return all(math.dist(p, (place[0] + w, place[1])) > _CLEAR for p in arrows for w in _WIDE)

    found = {}
    for name, (x, y) in at.items():
        below, above = (x, y - _WORDS), (x, y + _WORDS)
        found[name] = above if clear(above) and not clear(below) else below
    return found


def curve(a: Place, b: Place, rad: float, points: int = 25) -> Sequence[Place]:
    """Points along an arrow: the quadratic Bézier curve that matplotlib draws for ``arc3``."""
    (ax, ay), (bx, by) = a, b
    cx, cy = (ax + bx) / 2 + rad * (by - ay), (ay + by) / 2 - rad * (bx - ax)
    steps = [i / (points - 1) for i in range(points)]
    return [
        (
            (1 - t) ** 2 * ax + 2 * t * (1 - t) * cx + t**2 * bx,
            (1 - t) ** 2 * ay + 2 * t * (1 - t) * cy + t**2 * by,
        )
        for t in steps
    ]
