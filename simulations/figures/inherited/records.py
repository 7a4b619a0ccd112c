"""Records: the rows of a figure's CSV, from which it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from simulations.figures.inherited.lab import Lab
from simulations.inheritance.results import BEFORE, RETRAINED, Result, Row
from simulations.scenarios.contract import Scenario

Record = dict[str, str | int | float | bool | None]
"""One row: column to value; accuracies 0 to 1, None where nothing was measured."""


def about(lab: Lab) -> Record:
    """What every record of an experiment says first."""
    c = lab.config
    return {
        "experiment": lab.name,
        "scenario": c.scenario,
        "dataset": c.dataset,
        "data": lab.world.bundle.about,
        "network": c.model,
        "size": c.size,
        "seed": c.seed,
    }


def generations(scenario: Scenario) -> dict[str, int]:
    """Model to the length of the longest way to it from a model without parents, in models passed on."""
    found: dict[str, int] = {}
    for model in scenario.models:
        found[model.name] = 1 + max((found[p] for p in model.parents), default=-1)
    return found


def every_row(lab: Lab, result: Result) -> list[Record]:
    """A record for every model and method, `BEFORE` and `RETRAINED` among them.

    Where a method refused, it says why, and has no accuracies: the models are what they were before.
    """
    deep, affected = generations(lab.scenario), set(result.affected)
    seconds = {name: spent.seconds for name, spent in result.spent.items()}
    seconds |= {RETRAINED: sum(result.retrain.values())}
    out: list[Record] = []
    for row in result.rows:
        refused = result.spent[row.method].refused if row.method in result.spent else ""
        own: Record = {
            "model": row.model,
            "generation": deep[row.model],
            "affected": row.model in affected,
            "forgotten_labels": len(result.forget),
            "method": row.method,
            **accuracies(None if refused else row),
            "owner_seconds": seconds.get(row.method),
            "refused": refused,
        }
        out.append({**about(lab), **own})
    return out


def accuracies(row: Row | None) -> Record:
    """The two accuracies of a row."""
    return {"forget": row.forget if row else None, "retained": row.retained if row else None}


def levels(lab: Lab, result: Result, **columns: str | float | None) -> list[Record]:
    """Records of the affected models before and retrained, to compare ways to forget with.

    Args:
        lab: The experiment.
        result: What was measured.
        **columns: The figure's other columns with what they are here.
    """
    hit = set(result.affected)
    rows = [r for r in result.rows if r.method in (BEFORE, RETRAINED) and r.model in hit]
    return [{**about(lab), "way": r.method, **columns, "model": r.model, **accuracies(r)} for r in rows]


def values(records: Iterable[Record], key: str) -> list[float]:
    """The numbers of a column, without those that were not measured."""
    found = (r[key] for r in records)
    return [float(v) for v in found if isinstance(v, (int, float))]


def mean_of(records: Iterable[Record], key: str) -> float | None:
    """Their mean; None where there is none."""
    found = values(records, key)
    return fmean(found) if found else None


def one(records: Sequence[Record], where: Callable[[Record], bool]) -> Record | None:
    """The first record for which ``where`` holds."""
    return next((r for r in records if where(r)), None)


def distinct(records: Iterable[Record], key: str) -> list[str]:
    """The texts of a column, in the order of their first record."""
    return list(dict.fromkeys(str(r[key]) for r in records))
