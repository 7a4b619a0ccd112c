"""Every strategy of Flower, wrapped: bit-identical until a request, forgets, and does not remember again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import matrix
import pytest
from matrix import quiet as quiet

from fl_unlearn.lineage import NodeKind
from simulations.figures.strategy_matrix import __main__ as script
from simulations.figures.strategy_matrix import today
from simulations.figures.strategy_matrix.trial import run_today

TREES = [name for name, case in today.CASES.items() if case.trees]

pytestmark = pytest.mark.usefixtures("quiet")


def test_every_strategy_of_the_installed_flower_is_listed() -> None:
    assert today.unlisted() == set()


@pytest.mark.parametrize("name", sorted(set(today.CASES) - set(TREES)))
def test_strategy(name: str) -> None:
    matrix.check(matrix.row("flwr.serverapp.strategy", name))


@pytest.mark.parametrize("name", TREES)
def test_trees_are_recorded_and_not_dampened(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, federation = today.CASES[name], matrix.problem(5)
    bare = run_today(case, federation, 6)
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        wrapped = run_today(case, federation, 6, folder=tmp_path, after_round=5)
    assert (wrapped.models, wrapped.metrics) == (bare.models, bare.metrics)
    (result,) = wrapped.results
    assert not result.committed
    assert "holds no arrays of floating-point values" in result.message
    assert "train it again without the data" in result.message
    store = wrapped.store
    assert store is not None
    assert [n.round for n in store.umig.nodes(kind=NodeKind.AGGREGATE)] == [1, 2, 3, 4, 5, 6]
    updates = list(store.umig.nodes(kind=NodeKind.CLIENT_UPDATE))
    assert len(updates) == (6 if name == "FedXgbCyclic" else 30)
    assert all(n.metadata["metrics"]["num-examples"] == 32 for n in updates)
    assert store.kept() == set()
    # Of the models, of the nodes without a name, of the request: once each, however many rounds there are.
    assert len(caplog.records) == 3


def test_the_script_makes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["FedXgbCyclic", "--clients", "3", "--rounds", "2", "--out", str(tmp_path)]
    assert script.main(arguments) == 0
    table = (tmp_path / "strategies.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert table.count("| FedXgbCyclic | yes |") == table.count("| refused |") == 2
    rows = json.loads((tmp_path / "strategies.json").read_text())["rows"]
    assert [r["api"] for r in rows] == ["flwr.serverapp.strategy", "flwr.server.strategy"]
