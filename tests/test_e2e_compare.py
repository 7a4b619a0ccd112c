"""The comparison through `flwr run`, on Flower's real simulation engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare_runs import but_for_time

from simulations.compare.jobs import run_jobs
from simulations.compare.results import read_json
from simulations.compare.setting import Setting
from simulations.local_flower import LocalFlower

APP = Path(__file__).parents[1] / "simulations" / "compare" / "app"
SMALL = {"clients": 3, "rounds": 3}
NAME = "digits-class"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_strategies_are_compared_through_flower(tmp_path: Path) -> None:
    config = {**SMALL, "strategies": "retrain,mask", "metrics": "accuracy"}
    with LocalFlower(SMALL["clients"], quiet=True) as flower:
        flower.run(APP, {**config, "out-dir": str(tmp_path / "run")})
    (found,) = read_json(tmp_path / "run" / "results.json")
    assert list(found.strategies) == ["original", "retrain", "mask"]
    assert found.mean("original", "forget-accuracy")[0] > 0.5
    assert found.mean("retrain", "forget-accuracy") == found.mean("mask", "forget-accuracy") == (0, 0)
    assert found.mean("retrain", "rounds") == (SMALL["rounds"], 0)
    assert found.mean("retrain", "client-seconds")[0] > 0

    # The same strategies in one process, from the federation that Flower trained: the same bits.
    models = tmp_path / "run" / NAME / "seed-0"
    over_messages = {name: (models / f"{name}.safetensors").read_bytes() for name in found.strategies}
    for path in (*models.glob("*.json"), *models.glob("*.safetensors")):
        path.unlink()
    setting = Setting.named(NAME, **SMALL)
    (local,) = run_jobs({NAME: setting}, ["mask"], ["accuracy"], [0], tmp_path / "run")
    assert but_for_time(found) == but_for_time(local)
    for name, data in over_messages.items():
        assert (models / f"{name}.safetensors").read_bytes() == data
