"""Everything that can be wrong with an experiment, found before the first model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fl_unlearn.fisher import find_head, resolve_scope
from fl_unlearn.merge import RULES
from simulations import datasets, models, scenarios
from simulations.inheritance.config import Config, ConfigError, unknown
from simulations.inheritance.methods import METHODS, settings_of
from simulations.inheritance.world import World
from simulations.scenarios.shares import PARTITIONS


def check_names(config: Config) -> None:
    """Check that everything a config names exists; no data is read.

    Raises:
        ConfigError: If something does not; it says all that does not.
    """
    named: list[tuple[str, str, Iterable[str]]] = [
        ("scenario", config.scenario, scenarios.SCENARIOS),
        ("dataset", config.dataset, datasets.DATASETS),
        ("partition", config.partition, PARTITIONS),
        ("model", config.model, models.MODELS),
        ("merge-rule", config.merge_rule, RULES),
        *(("method", name, METHODS) for name in config.method_names()),
    ]
    problems = [unknown(what, name, known) for what, name, known in named if name not in known]
    if not config.method_names():
        problems.append(f"methods names none; the known ones are {', '.join(METHODS)}")
    problems += _device_problems(config.device)
    if problems:
        raise ConfigError("; ".join(problems))


def check(world: World) -> None:
    """Check an experiment: names, settings, data, graph, model; nothing is trained.

    Raises:
        ConfigError: If something is wrong; it says how to put it right.
        ScenarioError: If the scenario cannot be built: unknown labels, a circle, a missing parent.
        DatasetError: If the data is missing or unsuitable.
        UnlearnError: If the model cannot be built or has no head, or a setting makes no sense.
    """
    config = world.config
    check_names(config)
    settings_of(config, "")
    bundle, scenario = world.bundle, world.scenario
    problems = [*_owner_problems(world)]
    there = set(bundle.test.labels.tolist())
    if lost := [label for label in scenario.forget if label not in there]:
        problems.append(f"there is no test sample of class {lost[0]}, to be forgotten; raise test-samples")
    problems += _model_problems(world, world.build_model().eval())
    if problems:
        raise ConfigError(f"{scenario.name} on {config.dataset}: " + "; ".join(problems))


def check_counts(world: World, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Check that a federation is the scenario's, and that everybody in it has something to train on.

    Args:
        world: The experiment.
        counts: Client to its number of samples in each part, as `strategies.contract.Federation` has them.

    Raises:
        ConfigError: If an owner is missing, or has too little.
    """
    scenario, problems = world.scenario, []
    if missing := sorted(set(scenario.owners) - counts.keys()):
        raise ConfigError(
            f"the owner {missing[0]!r} of {scenario.name} is not among the clients: they are "
            f"{', '.join(counts)}"
        )
    for owner in dict.fromkeys(m.owner for m in scenario.models if m.owner is not None):
        kept = counts[owner]["retained"]
        if kept < 2:
            problems.append(f"{owner} has {kept} samples to keep, too few to train on; raise samples")
    if not any(counts[owner]["forget"] for owner in scenario.owners):
        problems.append("nobody has a sample of what is to be forgotten; raise samples")
    if problems:
        raise ConfigError(f"{scenario.name}: " + "; ".join(problems))


def _owner_problems(world: World) -> Iterable[str]:
    shares = world.shares("train")
    for owner in world.scenario.owners:
        if not len(shares.get(owner, ())):
            yield f"{owner} has no sample; raise samples, or choose another partition"


def _model_problems(world: World, model: nn.Module) -> Iterable[str]:
    config, bundle = world.config, world.bundle
    name, head = find_head(model)
    if head.out_features != bundle.num_classes:
        yield (
            f"the model {config.model} has no recognisable head: its last linear layer {name!r} has "
            f"{head.out_features} outputs, and there are {bundle.num_classes} classes"
        )
        return
    resolve_scope(model, config.scope, name)
    for trains in dict.fromkeys(m.trains for m in world.scenario.models if m.owner is not None):
        resolve_scope(model, trains, name)
    x = bundle.train.samples[0][0].unsqueeze(0)
    try:
        with torch.no_grad():
            shape = tuple(model(x).shape)
    except (RuntimeError, ValueError, IndexError) as e:
        yield f"the model {config.model} cannot take a sample of shape {tuple(x.shape[1:])}: {e}"
        return
    if shape != (1, bundle.num_classes):
        yield f"the model {config.model} gives {shape}, one sample and {bundle.num_classes} logits are wanted"


def _device_problems(name: str) -> Iterable[str]:
    if name == "auto":
        return
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        first = str(e).splitlines()[0]
        yield f"device must be auto, cpu or one that torch can use here, got {name!r}: {first}"
