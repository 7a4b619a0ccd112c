"""Every strategy of Flower's legacy API, remembered: as `test_strategy_matrix`."""

from __future__ import annotations

import logging
from pathlib import Path

import matrix
import pytest
from flwr.common import Code, FitRes, Parameters, Status
from flwr.server import strategy as flower
from matrix import quiet as quiet

from fl_unlearn.lineage import NodeKind
from simulations.figures.strategy_matrix import legacy
from simulations.figures.strategy_matrix.trial import run_legacy

WITHOUT_VALUES = [name for name, case in legacy.CASES.items() if case.kind != "model"]

pytestmark = pytest.mark.usefixtures("quiet")


def test_every_legacy_strategy_of_the_installed_flower_is_listed() -> None:
    assert legacy.unlisted() == set()


def test_one_legacy_strategy_cannot_be_run_in_any_project() -> None:
    """FedXgbNnAvg takes pairs for parameters, which no message of Flower's carries."""
    result = FitRes(Status(Code.OK, ""), Parameters([], ""), 1, {})
    with pytest.raises(TypeError, match="not subscriptable"):
        flower.FedXgbNnAvg().aggregate_fit(1, [(None, result)], [])  # type: ignore[list-item]


@pytest.mark.parametrize("name", sorted(set(legacy.CASES) - set(WITHOUT_VALUES)))
def test_strategy(name: str) -> None:
    matrix.check(matrix.row("flwr.server.strategy", name))


@pytest.mark.parametrize("name", WITHOUT_VALUES)
def test_what_is_no_array_is_recorded_and_not_dampened(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, federation = legacy.CASES[name], matrix.problem(5)
    bare = run_legacy(case, federation, 3)
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        wrapped = run_legacy(case, federation, 3, folder=tmp_path, after_round=2)
    assert (wrapped.models, wrapped.metrics) == (bare.models, bare.metrics)
    (result,) = wrapped.results
    assert not result.committed
    assert "holds no arrays of floating-point values" in result.message
    store = wrapped.store
    assert store is not None
    assert [n.round for n in store.umig.nodes(kind=NodeKind.AGGREGATE)] == [1, 2, 3]
    assert {n.owner for n in store.umig.nodes(kind=NodeKind.CLIENT_UPDATE)} <= set("01234")
    assert store.kept() == set()
    assert len(caplog.records) == 2
