"""The arithmetic of the overhead benchmark; nothing here is timed."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import federation as fed

from fl_unlearn.run_store import RunStore
from simulations.benchmarks import overhead
from simulations.benchmarks.overhead_app.fl_unlearn_bench_overhead import server_app


def block(kind: str, seconds: list[float], extra: float = 0.0, **changes: Any) -> dict[str, Any]:
    rounds = [{"seconds": s, "server_seconds": 0.1 + extra, "written_bytes": 1000} for s in seconds]
    rounds[0]["server_seconds"] += 0.5
    usual = {"clients": 2, "model_bytes": 8, "opening_seconds": 0.25, "kept_bytes": 300 * (len(rounds) + 1)}
    return {"block": 1, "kind": kind, "rounds": rounds, **usual, **changes}


def test_a_linear_drift_cancels() -> None:
    order = overhead.block_order(4)
    assert order[:4] == ["bare", "wrapped", "wrapped", "bare"]
    assert sorted(order) == ["bare"] * 4 + ["wrapped"] * 4
    at = {kind: sum(i for i, k in enumerate(order) if k == kind) for kind in order}
    assert at["bare"] == at["wrapped"]


@pytest.mark.parametrize("n", [1, 5, 6, 10, 17])
def test_the_interval_is_the_narrowest_that_covers_the_median(n: int) -> None:
    """Each value lies below the median or above it, with even odds: all 2^n cases are counted."""
    falls = [sum(case) for case in itertools.product((0, 1), repeat=n)]

    def covers(r: int) -> float:  # from the r-th smallest to the r-th largest: r or more on either side
        return sum(r <= below <= n - r for below in falls) / 2**n

    fitting = [r for r in range(1, n // 2 + 1) if covers(r) >= 0.95]
    r = max(fitting, default=1)
    values = random.Random(n).sample(range(1000), n)
    assert overhead.median_interval(values) == (sorted(values)[r - 1], sorted(values)[n - r])


def test_the_interval_of_thousands_of_values() -> None:
    low, high = overhead.median_interval(list(range(5000)))
    assert (low, high) == (pytest.approx(2500 - 0.98 * 5000**0.5, abs=2), 4999 - low)


def test_summary_of_known_times() -> None:
    blocks = [
        block("bare", [9.0, 2.0, 4.0]),
        block("wrapped", [50.0, 2.2, 4.1], extra=0.02),
        block("wrapped", [50.0, 3.3, 5.0], extra=0.02),
        block("bare", [9.0, 3.0, 5.0]),
    ]
    s = overhead.summarise(blocks)
    assert s["round"]["pairs"] == 4, "the first rounds are set apart"
    assert s["round"]["bare"][1] == 3.5
    assert s["round"]["difference"] == pytest.approx([0.075, 0.15, 0.225])
    assert s["overhead"] == pytest.approx(0.15 / 3.5)
    assert s["overhead_95"] == pytest.approx([0.0, 0.3 / 3.5])
    assert s["server_overhead"] == pytest.approx(0.02 / 3.5)
    assert s["once_seconds"] == pytest.approx(0.75)
    assert (s["written_bytes"], s["kept_bytes"]) == (1000, 300)
    assert "| 150.0 (75.0 to 225.0) | 4.3 (0.0 to 8.6) | 20.0 (0.6) |" in overhead.table({"x": s})
    for b in blocks:
        b["rounds"][2]["written_bytes"] = None
    s = overhead.summarise(blocks)
    assert s["written_bytes"] is None
    assert "0.00 MB" in overhead.table({"x": s})


def test_blocks_of_a_federation_in_one_process(tmp_path: Path) -> None:
    for store in (None, tmp_path / "store"):
        start = ArrayRecord(fed.build_model().state_dict())
        made = server_app.run_block(fed.grid(), start, fed.CLIENTS, 3, store)
        assert len(made["rounds"]) == 3
        assert all(r["seconds"] >= r["server_seconds"] > 0 for r in made["rounds"])
        assert (made["kept_bytes"] > 0) == (store is not None)
    with RunStore(tmp_path / "store") as kept:
        assert kept.umig.last_round() == 3, "the wrapped block was recorded"


@pytest.mark.parametrize("options", [["--rounds", "1"], ["--blocks", "0"], ["--workload", "mnist"]])
def test_options_that_measure_nothing_are_refused(options: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["overhead", *options])
    with pytest.raises(SystemExit):
        overhead.main()
    assert "--" in capsys.readouterr().err
