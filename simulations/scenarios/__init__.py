"""Scenarios: topologies of models that inherit from one another, and who owns which labels.

To add one, write a function in a file of its own and a line in `SCENARIOS`. It takes ``num_classes``, and of
``forget`` (labels) and ``length`` (of the graph) what it has a use for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from inspect import signature

from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.depth import depth
from simulations.scenarios.diamond import diamond
from simulations.scenarios.incremental import incremental, incremental_30
from simulations.scenarios.overlap import with_overlap
from simulations.scenarios.parallel import parallel, parallel_missing
from simulations.scenarios.random_dag import random_graph
from simulations.scenarios.several import several
from simulations.scenarios.transfer import transfer

__all__ = ["LEAST_RETAINED", "SCENARIOS", "Scenario", "ScenarioError", "build"]

SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "diamond": diamond,
    "several": several,
    "parallel": parallel,
    "parallel-missing": parallel_missing,
    "incremental": incremental,
    "incremental-30": incremental_30,
    "transfer": transfer,
    "depth": depth,
    "random": random_graph,
}
"""The scenarios by name."""

LEAST_RETAINED = 2
"""Labels, of those that are kept, that everybody who trains has: with one there is nothing to tell apart."""


def build(
    name: str,
    num_classes: int,
    *,
    forget: Iterable[int] | None = None,
    length: int | None = None,
    overlap: float | None = None,
) -> Scenario:
    """Build a scenario.

    Args:
        name: One of `SCENARIOS`; the function there says what its graph is.
        num_classes: How many labels the data has.
        forget: Labels to forget; None: the paper's, scaled to the number of labels as the scenario says.
        length: How many models, where that can be chosen; None: the paper's.
        overlap: Which share of its retained labels an owner has in common with the others, from 0 (each has
            its own) to 1; None: as the scenario has it. See `simulations.scenarios.overlap`.

    Raises:
        ScenarioError: If there is no such scenario, or it cannot be built like this.
    """
    if name not in SCENARIOS:
        close = difflib.get_close_matches(name, SCENARIOS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ScenarioError(f"unknown scenario {name!r}: the known ones are {', '.join(SCENARIOS)}{hint}")
    options = {"forget": forget, "length": length}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        able = [n for n, builder in SCENARIOS.items() if option in signature(builder).parameters]
        if name not in able:
            raise ScenarioError(
                f"{name} has no {option} to choose, got {given[option]}; it is for {', '.join(able)}"
            )
    scenario = SCENARIOS[name](num_classes, **given)
    if overlap is not None:
        scenario = with_overlap(scenario, overlap)
    for owner in dict.fromkeys(model.owner for model in scenario.models if model.owner is not None):
        kept = set(scenario.labels[owner]) - set(scenario.forget)
        if len(kept) < LEAST_RETAINED:
            raise ScenarioError(
                f"{name}: {owner} would have {len(kept)} retained classes and needs {LEAST_RETAINED} or more "
                f"to train on; forget fewer of the {num_classes} classes, or raise the overlap"
            )
    return scenario
