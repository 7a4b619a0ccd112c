"""A scenario of the paper through `flwr run`, on Flower's real simulation engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fl_unlearn.model_graph import ModelGraph
from simulations.compare.local import LocalFederation
from simulations.inheritance.config import Config
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.results import Result
from simulations.inheritance.world import World
from simulations.local_flower import LocalFlower

APP = Path(__file__).parents[1] / "simulations" / "paper"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_config_file_gives_what_one_process_gives(tmp_path: Path) -> None:
    world = World(Config(scenario="diamond", dataset="digits", model="mlp", epochs=2, methods="ours"))
    file, out = tmp_path / "diamond.toml", tmp_path / "flower"
    file.write_text(
        "scenario = 'diamond'\ndataset = 'digits'\nmodel = 'mlp'\nepochs = 2\nmethods = 'ours'\n"
        f"retrain = false\nout-dir = '{out}'\n"
    )
    with LocalFlower(len(world.scenario.owners), quiet=True) as flower:
        flower.run(APP, file)
    federation = LocalFederation(list(world.clients.values()), world.request)
    local = Experiment(world, federation, tmp_path / "local", print).run(retrain=False)
    over_messages = Result.load(out)
    assert over_messages is not None
    assert over_messages.rows == local.rows
    assert over_messages.spent["ours"].facts == local.spent["ours"].facts
    assert {r.forget for r in local.rows if r.method == "ours"} == {0.0}
    with ModelGraph(out / "models") as theirs, ModelGraph(tmp_path / "local" / "models") as ours:
        for model in world.scenario.models:
            state = ours.state(model.name)
            assert all(torch.equal(t, state[n]) for n, t in theirs.state(model.name).items())
