"""Forgetting for good: what was measured of ours is applied to the stored models of an experiment."""

from __future__ import annotations

from pathlib import Path

from fl_unlearn.apply import stage
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.run_store import RunStore
from fl_unlearn.store_folder import DATABASE
from simulations.inheritance.config import ConfigError
from simulations.inheritance.folder import APPLIED, MODELS, finished, key_of
from simulations.inheritance.kept import load_applied
from simulations.inheritance.results import FILE
from simulations.inheritance.world import World

OURS = "ours"
"""The method that is committed."""


def commit(world: World, out: Path) -> int:
    """Apply the updates of ours that were measured to every affected stored model, all or nothing.

    Args:
        world: What the experiment was run on.
        out: The experiment's folder, with its result.

    Returns:
        How many models were changed; 0 if they had forgotten before.

    Raises:
        ConfigError: If ours was not measured there with this config, or was refused.
        StoreError: If the models cannot be written; nothing is changed then.
    """
    result = finished(out, world.config, retrain=False)
    if result is None or OURS not in result.spent:
        raise ConfigError(f"{OURS!r} was not measured with this config in {out}, so it cannot be committed")
    if why := result.spent[OURS].refused:
        raise ConfigError(f"{OURS!r} was refused, so there is nothing to commit: {why}")
    applied = load_applied(out / APPLIED, OURS, key_of(world.config))
    if applied is None:
        raise ConfigError(f"the update of {OURS!r} is no longer in {out / APPLIED}; run it again")
    if _committed(out):
        return 0
    with ModelGraph(out / MODELS) as graph:
        last = world.scenario.affected()[-1]
        staged = stage(graph.store, applied.updates, applied.updates[last])
        staged.commit(world.request.to_json())
        return len(staged.files)


def refuse_committed(out: Path) -> None:
    """Check that an experiment's models are still those that were trained.

    Raises:
        ConfigError: If an update was committed to them.
    """
    if _committed(out):
        raise ConfigError(
            f"the models in {out} have forgotten for good, so that nothing new can be measured of them; what "
            f"was measured before is in {out / FILE}; name another folder, or have it made anew with --again"
        )


def _committed(out: Path) -> bool:
    if not (out / MODELS / DATABASE).is_file():
        return False
    with RunStore(out / MODELS, read_only=True) as store:
        return bool(store.operations.all())
