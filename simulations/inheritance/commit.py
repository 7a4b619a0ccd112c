"""Forgetting for good: what was measured of ours is applied to the stored models of an experiment."""

from __future__ import annotations

from pathlib import Path

from fl_unlearn.graph_unlearning import find
from fl_unlearn.model_graph import ModelGraph
from simulations.inheritance.config import ConfigError
from simulations.inheritance.methods import Tell, settings_of
from simulations.inheritance.results import FILE, Result
from simulations.inheritance.tasks import FederationOwners
from simulations.inheritance.world import World
from strategies.contract import Federation

OURS = "ours"
"""The method that is committed."""


def commit(world: World, federation: Federation, out: Path, tell: Tell = print) -> int:
    """Apply ours to every affected model that an experiment has stored, all or nothing.

    The update is found anew, which gives what was measured: owners answer the same to the same question.

    Args:
        world: What the experiment was run on.
        federation: The owners; they know the request.
        out: The experiment's folder; its result must be there.
        tell: Told what is done next.

    Returns:
        How many models were changed.

    Raises:
        ConfigError: If ours was not measured there with this config, or was refused, or the models have
            forgotten already.
        StoreError: If the models cannot be written; nothing is changed then.
    """
    _check_measured(world, out)
    with ModelGraph(out / "models") as graph:
        refuse_committed(graph, out)
        tell("finding the update that is to be committed")
        settings = settings_of(world.config, world.head)
        found = find(graph, world.request, FederationOwners(federation), settings, tell=tell)
        return found.commit(graph)


def refuse_committed(graph: ModelGraph, out: Path) -> None:
    """Check that no update was committed to a graph: its models are no longer those that were trained.

    Raises:
        ConfigError: If one was.
    """
    if done := graph.store.operations.all():
        raise ConfigError(
            f"the models in {out} have forgotten {done[-1].request} for good; what was measured before is in "
            f"{out / FILE}; for another experiment name another folder"
        )


def _check_measured(world: World, out: Path) -> None:
    result = Result.load(out)
    if result is None or OURS not in result.spent:
        raise ConfigError(f"nothing is measured of {OURS!r} in {out}, so there is nothing to commit")
    if result.config != world.config.to_mapping():
        given, measured = world.config.to_mapping(), result.config
        other = [k for k in given if given[k] != measured.get(k)]
        raise ConfigError(
            f"{out / FILE} was measured with another {', '.join(other)}; run the experiment with this config "
            "first"
        )
    if why := result.spent[OURS].refused:
        raise ConfigError(f"{OURS!r} was refused, so there is nothing to commit: {why}")
