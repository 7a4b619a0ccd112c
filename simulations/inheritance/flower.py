"""An experiment behind Flower: its run config, and the node that is an owner's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

import strategies  # noqa: F401 (owners know the tasks of all strategies)
from simulations.compare.flower import FlowerFederation, await_clients
from simulations.inheritance.checks import check
from simulations.inheritance.commit import OURS
from simulations.inheritance.config import Config, ConfigError
from simulations.inheritance.folder import trained_like
from simulations.inheritance.results import Result
from simulations.inheritance.world import World, world_of
from simulations.local_flower import LocalFlower
from strategies.client import Client

RUN_KEYS = ("out-dir", "retrain", "commit", "timeout")
"""Keys of the run config beside those of `Config`."""


TIMEOUT = 86_400.0
"""Seconds that a run may take when it is started from here."""

APP = Path(__file__).parents[1] / "paper"
"""The Flower app."""


@dataclass(frozen=True)
class Run:
    """What a run config asks for.

    Attributes:
        world: What the config makes.
        out: The folder to write to.
        retrain: Whether the affected models are retrained.
        commit: Whether the stored models are to forget for good, once all is measured.
        timeout: Seconds to wait for the owners' answers to one question.
    """

    world: World
    out: Path
    retrain: bool
    commit: bool
    timeout: float


def read_run(given: Mapping[str, Any]) -> Run:
    """What a run config asks for, checked: the scenario, data and model are there when this returns.

    Raises:
        UnlearnError, ValueError: If something makes no sense, or is not there.
    """
    config = config_of(given)
    for key in ("retrain", "commit"):
        if not isinstance(given[key], bool):
            raise ConfigError(f"{key} must be true or false, got {given[key]!r}")
    if given["commit"] and OURS not in config.method_names():
        raise ConfigError(f"commit=true needs the method {OURS!r}, got methods={config.methods!r}")
    timeout = given["timeout"]
    if isinstance(timeout, bool | str) or not timeout > 0:
        raise ConfigError(f"timeout must be a number of seconds above 0, got {timeout!r}")
    world = world_of(config)
    check(world)
    out = Path(str(given["out-dir"]) or f"outputs/paper/{folder_of(config)}").expanduser().absolute()
    return Run(world, out, given["retrain"], given["commit"], float(timeout))


def config_of(given: Mapping[str, Any]) -> Config:
    """The experiment of a run config.

    Raises:
        ConfigError: If a key is unknown or a value makes no sense.
    """
    return Config.from_mapping(given, others=RUN_KEYS)


def folder_of(config: Config) -> str:
    """A folder's name that no experiment with other models has, so that what was interrupted goes on."""
    digest = hashlib.sha256(json.dumps(trained_like(config), sort_keys=True).encode()).hexdigest()
    return f"{config.scenario}-{config.dataset}-{config.model}-{digest[:8]}"


def connect(grid: Grid, run: Run) -> FlowerFederation:
    """The owners, once as many nodes are connected as there are.

    Raises:
        StrategyError: If they are not in time, or one is not what the config says.
    """
    await_clients(grid, len(run.world.scenario.owners))
    return FlowerFederation(grid, run.world.request, timeout=run.timeout)


def client_of(context: Context) -> Client:
    """The owner that a node is: node n is owner number n of the scenario.

    Raises:
        ConfigError: If there are more or fewer nodes than owners.
        ValueError: If the data is not there.
    """
    world = world_of(config_of(context.run_config))
    owners, node = world.scenario.owners, context.node_config
    if int(node["num-partitions"]) != len(owners):
        raise ConfigError(
            f"the run has {node['num-partitions']} nodes, the scenario {world.config.scenario!r} "
            f"{len(owners)} owners; give flwr run --federation-config 'num-supernodes={len(owners)}'"
        )
    return world.clients[owners[int(node["partition-id"])]]


def run_behind_flower(world: World, out: Path, *, retrain: bool) -> Result:
    """Run an experiment on a simulation engine of its own, which is stopped afterwards.

    Args:
        world: What the config makes.
        out: The folder.
        retrain: Whether the affected models are retrained.

    Raises:
        RunFailedError: If the run did not complete; what it printed says why.
    """
    config = {**world.config.to_mapping(), "out-dir": str(out.absolute()), "retrain": retrain}
    with LocalFlower(len(world.scenario.owners)) as flower:
        flower.run(APP, config, timeout=TIMEOUT)
    result = Result.load(out)
    assert result is not None
    return result
