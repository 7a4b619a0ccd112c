"""A plan of models that inherit from one another: checked before the first of them is trained."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from heapq import heapify, heappop, heappush
from numbers import Real
from urllib.parse import quote

from fl_unlearn.types import LineageError

_LONGEST = 200

Parents = Mapping[str, float] | Sequence[str]
"""Names of the models that one is made from, with weights above 0; names alone: equal weights."""


@dataclass(frozen=True, init=False)
class PlannedModel:
    """One model that is to be made.

    Attributes:
        name: Unique name.
        parents: What it starts from: one model, or the weighted mean of several; none: new weights. Weights
            sum to 1.
        owner: On whose data it is trained; None: on nobody's, it stays what it starts from.
        trains: Which parameters training changes: ``"all"``, ``"head"``, or what
            `fl_unlearn.fisher.resolve_scope` takes.

    Raises:
        LineageError: If a value is none that the graph can hold.
    """

    name: str
    parents: Mapping[str, float] = field(hash=False)
    owner: str | None
    trains: str

    def __init__(
        self, name: str, parents: Parents = (), owner: str | None = None, trains: str = "all"
    ) -> None:
        for what, value in (("name", name), ("owner", owner), ("trains", trains)):
            if not (value and isinstance(value, str)) and (value is not None or what != "owner"):
                raise LineageError(f"{what} of a planned model must be a non-empty text, got {value!r}")
        # A file is named after it: a name too long would fail only after the training.
        if (length := len(quote(name, errors="replace"))) > _LONGEST:
            raise LineageError(
                f"the name of a model takes at most {_LONGEST} bytes, percent-encoded; "
                f"{name[:20]!r}... takes {length}"
            )
        values = {"name": name, "parents": weighted(parents), "owner": owner, "trains": trains}
        for attribute, given in values.items():
            object.__setattr__(self, attribute, given)


def weighted(parents: Parents) -> dict[str, float]:
    """Parents with weights that sum to 1.

    Raises:
        LineageError: If a weight is not a finite number above 0, or nothing beside the others; or if a name
            is no text, or comes twice.
    """
    if isinstance(parents, str) or not isinstance(parents, Mapping | Sequence):
        raise LineageError(f"parents must be a list of names, or map names to weights, got {parents!r}")
    if odd := [name for name in parents if not isinstance(name, str)]:
        raise LineageError(f"the name of a parent must be a text, got {odd[0]!r}")
    given = dict(parents) if isinstance(parents, Mapping) else dict.fromkeys(parents, 1.0)
    if len(given) != len(parents):
        raise LineageError(f"a parent is named twice, got {list(parents)}; give it a larger weight instead")
    weights = {name: _weight(name, value) for name, value in given.items()}
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    for name, share in shares.items():
        if not share > 0:  # an edge of weight 0 inherits nothing
            raise LineageError(
                f"weights cannot be so far apart, or so large: the share of {name!r}, {given[name]!r} of "
                f"{total!r}, is 0; use weights of similar size"
            )
    return shares


def _weight(name: str, value: object) -> float:
    try:
        weight = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        weight = math.inf
    if not (math.isfinite(weight) and weight > 0):
        raise LineageError(f"the weight of parent {name!r} must be a finite number above 0, got {value!r}")
    return weight


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
    _check_parents(models, {*known})
    sorter = TopologicalSorter({m.name: [p for p in m.parents if p in models] for m in models.values()})
    try:
        sorter.prepare()
    except CycleError as e:
        circle = " from ".join(map(repr, reversed(e.args[1])))
        raise LineageError(f"models inherit from one another in a circle: {circle}; remove a parent") from e
    names, position = list(models), {name: i for i, name in enumerate(models)}
    ready = [position[name] for name in sorter.get_ready()]
    heapify(ready)
    order: list[PlannedModel] = []
    while ready:
        name = names[heappop(ready)]
        order.append(models[name])
        sorter.done(name)
        for free in sorter.get_ready():
            heappush(ready, position[free])
    return order


def _check_parents(models: Mapping[str, PlannedModel], known: set[str]) -> None:
    for model in models.values():
        for parent in model.parents:
            if parent not in models and parent not in known:
                close = difflib.get_close_matches(parent, [*models, *known], n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "; plan it, or leave it out"
                raise LineageError(f"{model.name!r} inherits from {parent!r}, which is not there{hint}")
