"""The quickstart through `flwr run`, on Flower's real simulation engine, as a user would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_unlearn.report_record import UnlearnReport
from fl_unlearn.run_store import RunStore
from simulations.local_flower import LocalFlower, RunFailedError

APP = Path(__file__).parents[1] / "simulations" / "quickstart"
CLIENTS = 4
SMALL = {
    "num-server-rounds": 6,
    "local-epochs": 3,
    "alpha": 10.0,
    "keep-client-updates": True,
    "retrain": True,
}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def flower():
    with LocalFlower(CLIENTS, quiet=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def run(flower: LocalFlower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    flower.run(APP, {**SMALL, "out-dir": str(folder), "forget-classes": "3", "holders": 2})
    return folder


def test_a_class_is_forgotten(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["outcome"] == "committed"
    assert len(report["clients"]["holders"]) == 2
    final = report["final"]
    assert final["node"] == "r0006-global"
    assert final["forget_accuracy_before"] > 0.5
    assert final["forget_accuracy_after"] == 0.0
    assert final["retain_accuracy_after"] > final["retain_accuracy_before"] - 0.05
    assert report["retrained"]["forget_accuracy"] == 0.0
    assert report["retrained"]["retain_accuracy"] > 0.6
    assert len(report["models"]) == 1 + 6 * (1 + CLIENTS)
    affected = [m for m in report["models"] if m["affected"]]
    assert len(affected) == 2 + 1 + 5 * (1 + CLIENTS)
    assert max(m["forget_accuracy_after"] for m in affected if m["kind"] == "aggregate") <= 0.01
    cost = report["cost"]
    assert 0 < cost["forget_client_seconds"] < cost["retrain_client_seconds"]
    assert UnlearnReport.from_json(report).to_json() == report
    for name in ("report.md", "lineage.png", "models.png", "classes.png", "lineage.sqlite"):
        assert (run / name).stat().st_size > 1000


def test_a_finished_run_serves_another_request_without_training(
    flower: LocalFlower, run: Path, tmp_path: Path
) -> None:
    before = sorted(p.name for p in (run / "checkpoints").iterdir())
    flower.run(
        APP,
        {
            "resume-from": str(run),
            "out-dir": str(tmp_path / "again"),
            "num-server-rounds": 0,
            "forget-classes": "7",
            # The partition follows these keys: the clients must hold the data they trained on.
            "alpha": 10.0,
            "holders": 2,
            "held-classes": "3",
        },
    )
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["outcome"] == "committed"
    assert report["final"]["forget_accuracy_after"] == 0.0
    assert report["class_accuracy"]["after"]["3"] == 0.0, "what was forgotten first stays forgotten"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before
    with RunStore(tmp_path / "again") as store:
        assert [o.request["classes"] for o in store.operations.all()] == [[3], [7]]
        assert len(store.load("r0006-global").applied) == 2


def test_forgetting_between_rounds(flower: LocalFlower, tmp_path: Path) -> None:
    folder = tmp_path / "between"
    flower.run(APP, {**SMALL, "retrain": False, "forget-after-round": 4, "out-dir": str(folder)})
    report = json.loads((folder / "report.json").read_text())
    aggregates = {m["round"]: m for m in report["models"] if m["kind"] == "aggregate"}
    assert aggregates[4]["forget_accuracy_before"] > 0.5
    assert aggregates[6]["forget_accuracy_before"] is None, "it did not exist before the request"
    assert max(m["forget_accuracy_after"] for m in aggregates.values()) <= 0.01


def test_a_run_that_fails_is_seen(flower: LocalFlower, run: Path) -> None:
    with pytest.raises(RunFailedError, match=r"is not empty; choose another"):
        flower.run(APP, {"out-dir": str(run)})
    with pytest.raises(RunFailedError, match=r"was trained on data shared out by"):
        flower.run(APP, {"resume-from": str(run), "num-server-rounds": 0})


def test_the_demo_exits_non_zero_when_its_run_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations.demo", "--clients", "2", "--out-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--set", "dataset=nonsense"],
        capture_output=True,
        text=True,
        cwd=APP.parents[1],
        check=False,
    )
    assert done.returncode == 1
    assert "the demonstration failed" in done.stderr
