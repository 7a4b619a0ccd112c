"""A slow, obvious ordering of planned models."""

from __future__ import annotations

from fl_unlearn.plan import PlannedModel


def slow_ordered(plan: list[PlannedModel]) -> list[PlannedModel]:
    """Again and again the first model left whose parents in the plan are done; [] where there is none."""
    left, done = list(plan), list[PlannedModel]()
    while left:
        waiting = {m.name for m in left}
        model = next((m for m in left if not waiting & m.parents.keys()), None)
        if model is None:
            return []
        left.remove(model)
        done.append(model)
    return done
