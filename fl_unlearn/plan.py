"""A plan of models that inherit from one another: checked before the first of them is trained."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from heapq import heapify, heappop, heappush

from fl_unlearn.types import LineageError

Parents = Mapping[str, float] | Sequence[str]
"""Names of the models that one is made from, with weights above 0; names alone: equal weights."""


@dataclass(frozen=True)
class PlannedModel:
    """One model that is to be made.

    Attributes:
        name: Unique name.
        parents: What it starts from: one model, or the weighted mean of several; none: new weights.
        owner: On whose data it is trained; None: on nobody's, it stays what it starts from.
        trains: Which parameters training changes: ``"all"``, ``"head"``, or what
            `fl_unlearn.fisher.resolve_scope` takes.
    """

    name: str
    parents: Mapping[str, float] = field(default_factory=dict, hash=False)
    owner: str | None = None
    trains: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", weighted(self.parents))


def weighted(parents: Parents) -> dict[str, float]:
    """Parents with weights that sum to 1.

    Raises:
        LineageError: If a weight is not a finite number above 0, or a name comes twice.
    """
    if isinstance(parents, str):
        raise LineageError(f"parents is a mapping or a list of names, got the text {parents!r}")
    given = dict(parents) if isinstance(parents, Mapping) else dict.fromkeys(parents, 1.0)
    if len(given) != len(parents):
        raise LineageError(f"a parent is named twice, got {list(parents)}; give it a larger weight instead")
    for name, weight in given.items():
        if isinstance(weight, bool) or not (math.isfinite(weight) and weight > 0):
            raise LineageError(
                f"the weight of parent {name!r} must be a finite number above 0, got {weight!r}"
            )
    total = sum(given.values())
    return {name: weight / total for name, weight in given.items()}


def ordered(plan: Iterable[PlannedModel], known: Iterable[str] = ()) -> list[PlannedModel]:
    """The models of a plan, parents before children, otherwise in the order given.

    Args:
        plan: The models.
        known: Names of models that are there already, and can be parents.

    Raises:
        LineageError: If a name comes twice, a parent is missing, or models inherit from one another in a
            circle.
    """
    models: dict[str, PlannedModel] = {}
    for model in plan:
        if model.name in models:
            raise LineageError(f"the plan has two models named {model.name!r}; names must be unique")
        models[model.name] = model
    there = {*known} - models.keys()
    for model in models.values():
        for parent in model.parents:
            if parent not in models and parent not in there:
                close = difflib.get_close_matches(parent, [*models, *there], n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise LineageError(f"{model.name!r} inherits from {parent!r}, which is not in the plan{hint}")
    sorter = TopologicalSorter({m.name: [p for p in m.parents if p in models] for m in models.values()})
    try:
        sorter.prepare()
    except CycleError as e:
        circle = " <- ".join(map(repr, e.args[1]))
        raise LineageError(f"models inherit from one another in a circle: {circle}; remove a parent") from e
    names, position = list(models), {name: i for i, name in enumerate(models)}
    ready, order = [position[name] for name in sorter.get_ready()], list[PlannedModel]()
    heapify(ready)
    while ready:
        name = names[heappop(ready)]
        order.append(models[name])
        sorter.done(name)
        for free in sorter.get_ready():
            heappush(ready, position[free])
    return order
