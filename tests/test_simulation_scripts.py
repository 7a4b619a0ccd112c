"""The scripts around the simulations: what they start they stop, what they tabulate is what was reported."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulations.figures import each_class
from simulations.local_flower import LocalFlower, RunFailedError


def test_stop_ends_the_superlink_and_all_below_it(tmp_path: Path) -> None:
    script = tmp_path / "flower-superlink"
    script.write_text("import subprocess, sys, time\nsubprocess.Popen(['sleep', '300'])\ntime.sleep(300)\n")
    with LocalFlower(2) as flower:
        started = subprocess.Popen([sys.executable, str(script), "--database", str(flower.home / "state.db")])
        other = subprocess.Popen(["sleep", "300"])
        deadline = time.monotonic() + 10
        while len(flower._processes()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = flower._processes()
        assert started.pid in pids
        assert len(pids) == 2
        assert other.pid not in pids
    assert started.wait(5) != 0
    assert flower._processes() == []
    assert other.poll() is None, "what somebody else started is left alone"
    other.kill()
    assert not flower.home.exists()


def test_two_engines_do_not_share_anything() -> None:
    with LocalFlower(2) as a, LocalFlower(2) as b:
        for key in ("FLWR_HOME", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"):
            assert a.env[key] != b.env[key]


def test_a_run_that_never_starts_is_a_failure(tmp_path: Path) -> None:
    with LocalFlower(2, quiet=True) as flower:
        flower.patience = 0.5
        with pytest.raises(RunFailedError, match="ended as nothing"):
            flower.run(tmp_path / "no-app-here", {})


def report(**changes: object) -> dict[str, object]:
    def model(node: str, affected: bool, values: tuple[float | None, ...]) -> dict[str, object]:
        names = ("forget_accuracy_before", "forget_accuracy_after")
        names += ("retain_accuracy_before", "retain_accuracy_after")
        return {"node": node, "affected": affected, **dict(zip(names, values, strict=True))}

    final = model("g2", True, (0.9, 0.0, 0.8, 0.79))
    cost = {"forget_client_seconds": 2.0, "retrain_client_seconds": 100.0}
    cost |= {"forget_wall_seconds": 1.0, "train_wall_seconds": 40.0}
    return {
        "request": {"classes": [1, 9]},
        "threshold": 3.0,
        "final": final,
        "models": [
            model("g0", False, (0.5, 0.5, 0.1, 0.1)),
            model("g1", True, (0.8, 0.02, 0.7, 0.6)),
            model("g3", True, (None, 0.01, None, 0.5)),
            final,
        ],
        "retrained": {"forget_accuracy": 0.0, "retain_accuracy": 0.81},
        "cost": cost,
        **changes,
    }


def test_rows_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = each_class.row_of(report())
    assert row["classes"] == "1,9"
    assert row["forget_after_worst"] == 0.02
    assert row["retain_drop"] == pytest.approx(0.01)
    assert row["retain_drop_worst"] == pytest.approx(0.1)
    assert (row["client_ratio"], row["wall_ratio"]) == (50.0, 40.0)
    refused = each_class.row_of(report(retrained=None, threshold=None))
    each_class.write_table([row, refused], tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert (
        "| 1,9 | 3 | 90.0 | 0.0 | 2.0 | 80.0 | 79.0 | 1.0 | 10.0 | 0.0 | 81.0 | 2.00 | 100.00 | 50x |"
        in lines[2]
    )
    assert "| - | - |" in lines[3]
    with open(tmp_path / "table.csv", newline="") as f:
        assert [r["threshold"] for r in csv.DictReader(f)] == ["3.0", ""]
    assert "Written to" in capsys.readouterr().out


def test_results_of_other_options_are_not_taken_for_these(tmp_path: Path) -> None:
    each_class._same_options(tmp_path, {"lr": 0.1})
    each_class._same_options(tmp_path, {"lr": 0.1})
    with pytest.raises(ValueError, match="holds results of other options"):
        each_class._same_options(tmp_path, {"lr": 0.2})
