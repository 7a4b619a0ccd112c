"""What is wrong with an experiment is said before anything is trained, and before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from inheritance_cases import TINY, Stopping
from torch import nn

from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import FisherError, LineageError, SettingsError
from simulations import models, scenarios
from simulations.datasets.bundle import DatasetError
from simulations.inheritance.checks import check, check_counts
from simulations.inheritance.config import ConfigError
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.world import World
from simulations.scenarios.contract import Scenario, ScenarioError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scenario": "diamnd"}, "unknown scenario 'diamnd' (did you mean 'diamond'?); the known ones are"),
        ({"dataset": "digit"}, "unknown dataset 'digit' (did you mean 'digits'?)"),
        ({"model": "resnet"}, "unknown model 'resnet' (did you mean 'resnet18'?)"),
        ({"partition": "evenly"}, "unknown partition 'evenly' (did you mean 'even'?)"),
        ({"merge_rule": "maximum"}, "unknown merge-rule 'maximum' (did you mean 'max'?)"),
        ({"methods": "our"}, "unknown method 'our' (did you mean 'ours'?)"),
        ({"device": "gpu"}, "device must be auto, cpu or one that torch can use here, got 'gpu'"),
    ],
)
def test_unknown_names(changes, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        check(World(replace(TINY, **changes)))
    assert said in str(e.value)


def test_all_unknown_names_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"scenario 'a'; .*model 'b'; .*method 'c'"):
        check(World(replace(TINY, scenario="a", model="b", methods="c")))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"forget": "0,12"}, ScenarioError, "class 12"),
        ({"scenario": "incremental", "overlap": 0.5}, ScenarioError, "overlap"),
        ({"dataset": "parquet"}, DatasetError, "parquet"),
        ({"dataset": "parquet", "data_root": "/nowhere"}, DatasetError, "nowhere"),
        ({"samples": 10}, ScenarioError, "take more samples"),
        ({"scope": "head2"}, FisherError, "head2"),
        ({"scope": " "}, SettingsError, "fisher_scope is empty"),
    ],
)
def test_what_scenario_data_and_settings_refuse(changes, error: type, said: str, tmp_path: Path) -> None:
    world = World(replace(TINY, **changes))
    with pytest.raises(error, match=said):
        Experiment(world, None, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def scenario(*planned: PlannedModel) -> Scenario:
    return Scenario("own", "", planned, {"a": (0, 1, 2)}, (0,))


def test_a_circle_and_a_missing_parent() -> None:
    with pytest.raises(LineageError, match="in a circle"):
        scenario(PlannedModel("x", ["y"], "a"), PlannedModel("y", ["x"], "a"))
    with pytest.raises(LineageError, match="'x' inherits from 'z', which is not there"):
        scenario(PlannedModel("x", ["z"], "a"))


def test_a_circle_of_a_registered_scenario_stops_an_experiment(monkeypatch, tmp_path: Path) -> None:
    def circle(num_classes: int) -> Scenario:
        return scenario(PlannedModel("x", ["y"], "a"), PlannedModel("y", ["x"], "a"))

    monkeypatch.setitem(scenarios.SCENARIOS, "circle", circle)
    with pytest.raises(LineageError, match="in a circle"):
        Experiment(World(replace(TINY, scenario="circle")), None, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


class Wide(nn.Module):
    """Its last linear layer is not its head."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(64, 10), nn.Linear(10, 7)

    def forward(self, x):
        return self.head(x.flatten(1)) + 0 * self.other.weight.sum()


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), FisherError, r"no nn\.Linear"),
        (Wide, ConfigError, "its last linear layer 'other' has 7 outputs, and there are 10 classes"),
        (lambda: nn.Sequential(nn.Conv2d(3, 1, 1), nn.Linear(8, 10)), ConfigError, r"of shape \(1, 8, 8\)"),
        (lambda: nn.Linear(8, 10), ConfigError, r"gives \(1, 1, 8, 10\), one sample and 10 logits"),
    ],
)  # fmt: skip
def test_models_without_a_head_or_for_other_inputs(model, error: type, said: str, monkeypatch) -> None:
    monkeypatch.setitem(models.PICTURES, "own", None)  # a model for pictures
    monkeypatch.setitem(models.MODELS, "own", lambda inputs, classes, small: model())
    with pytest.raises(error, match=said):
        check(World(replace(TINY, model="own")))


def test_an_owner_without_samples(monkeypatch) -> None:
    world = World(TINY)
    monkeypatch.setattr(
        World, "shares", lambda self, part: {o: range(o != "client2") for o in world.scenario.owners}
    )
    with pytest.raises(ConfigError, match="client2 has no sample; raise samples"):
        check(world)


def test_no_test_sample_of_what_is_forgotten() -> None:
    world = World(TINY)
    part = world.bundle.test
    test = replace(part, labels=part.labels[part.labels != 0])
    world.__dict__["bundle"] = replace(world.bundle, test=test)
    with pytest.raises(ConfigError, match="no test sample of class 0, to be forgotten; raise test-samples"):
        check(world)


def test_a_federation_that_is_not_the_scenarios() -> None:
    world = World(TINY)
    counts = Stopping(world).clients
    check_counts(world, counts)
    with pytest.raises(ConfigError, match=r"'client1' of diamond is not among the clients: they are client2"):
        check_counts(world, {o: c for o, c in counts.items() if o != "client1"})
    with pytest.raises(ConfigError, match="client1 has 1 samples to keep, too few to train on"):
        check_counts(world, {**counts, "client1": {**counts["client1"], "retained": 1}})
    with pytest.raises(ConfigError, match="nobody has a sample of what is to be forgotten"):
        check_counts(world, {o: {**c, "forget": 0} for o, c in counts.items()})
