"""The benchmark of the lineage, at a size that shows nothing but that it runs."""

from __future__ import annotations

import json

import pytest

from simulations.benchmarks import lineage


def test_both_sides_do_the_same_work(tmp_path, capfd):
    out = tmp_path / "lineage.json"
    arguments = ["--rounds", "6", "--clients", "5", "--folder", str(tmp_path), "--json", str(out)]
    assert lineage.main(arguments) == 0
    result = json.loads(out.read_text())
    assert (result["nodes"], result["edges"], result["descendants"]) == (37, 60, 3 * 6)
    assert set(result["umig"]) == set(lineage.ROWS)
    assert set(result["networkx"]) == set(lineage.ROWS) - {"open_seconds", "file_mb"}
    assert set(result["ratios"]) <= set(result["networkx"])  # so little takes no memory that can be measured
    assert {"build_seconds", "stream_seconds"} <= set(result["ratios"])
    assert all(result["umig"][key] > 0 for key in ("build_seconds", "file_mb", "stream_seconds"))
    assert [path.name for path in tmp_path.iterdir()] == ["lineage.json"]
    shown = capfd.readouterr()
    assert "37 nodes, 60 edges, 18 descendants" in shown.out
    assert "6/6 rounds" in shown.err


def test_a_part_that_fails_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="'write' failed"):
        lineage._process("write", str(tmp_path / "no" / "folder"), "1", "1")
    with pytest.raises(SystemExit):
        lineage.main(["--rounds", "0"])
