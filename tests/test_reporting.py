"""From a served request to the report: the numbers in it are those that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import federation as fed
import pytest

from fl_unlearn.flower.reporting import build_report, lineage_graph
from fl_unlearn.metrics.contract import Measured
from fl_unlearn.report import write_report
from fl_unlearn.report_record import UnlearnReport
from fl_unlearn.types import ClassScores, ForgetRequest, UnlearnError, UnlearnSettings
from fl_unlearn.verify import score_checkpoints


def held_out() -> list[object]:
    return [batch for p in range(fed.CLIENTS) for batch in fed.loader(p)]


def test_report_of_a_committed_request(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=3)
    store, model = strategy.store, fed.build_model()
    seen: list[tuple[int, int]] = []
    before = score_checkpoints(store, model, held_out(), progress=lambda a, b: seen.append((a, b)))
    outcome = strategy.forget(grid, ForgetRequest((3,)), result.arrays)
    after = score_checkpoints(store, model, held_out())
    assert seen == [(i, 4) for i in range(1, 5)]
    again = ClassScores({0: 9, 3: 0}, {0: 10, 3: 5}, {0: 1.0, 3: 9.0})
    report = build_report(
        outcome, store, before=before, after=after, seed=7, retrained=again, retrain_client_seconds=9.0
    )
    assert report.outcome == "committed"
    assert (report.final.node, report.final.forget_accuracy_after) == ("r0003-global", 0.0)
    assert report.final.forget_accuracy_before == before["r0003-global"].accuracy([3])
    assert report.final.retain_accuracy_after == after["r0003-global"].accuracy([0, 1, 2])
    assert [(m.node, m.affected) for m in report.models] == [
        ("r0000-initial", False),
        *((f"r000{r}-global", True) for r in (1, 2, 3)),
    ]
    assert report.retrained is not None
    assert (report.retrained.forget_accuracy, report.retrained.retain_accuracy) == (0.0, 0.9)
    assert report.clients.holders == ("1", "2")
    assert [c.committed for c in report.candidates].count(True) == 1
    assert (report.cost.bytes_up, report.cost.retrain_client_seconds) == (outcome.bytes_up, 9.0)
    assert report.class_accuracy["after"][3] == 0.0
    graph = lineage_graph(store, outcome)
    hit = {name for name, about in graph.nodes(data=True) if about["affected"]}
    assert hit == set(outcome.affected)
    paths = write_report(report, tmp_path / "report", graph=graph)
    assert UnlearnReport.from_json(json.loads(paths["report.json"].read_text())) == report


def test_report_of_a_refused_request(tmp_path: Path) -> None:
    settings = UnlearnSettings(threshold=1e6)
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=settings)
    outcome = strategy.forget(grid, ForgetRequest((3,)), result.arrays)
    scores = score_checkpoints(strategy.store, fed.build_model(), held_out())
    report = build_report(outcome, strategy.store, before=scores, after=scores)
    assert (report.outcome, report.threshold) == ("refused", None)
    assert report.final.forget_accuracy_after == report.final.forget_accuracy_before
    assert not any(c.committed for c in report.candidates)
    with pytest.raises(UnlearnError, match="no global model was scored"):
        build_report(outcome, strategy.store, before={}, after={})


def test_what_was_measured_is_shown_whatever_the_settings_are_now(tmp_path: Path) -> None:
    """A recalled request carries the settings of the server that recalls it."""
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    outcome = strategy.forget(grid, ForgetRequest((3,)), result.arrays)
    assert outcome.settings.measures == ()
    outcome.measured = {"zrf": {"before": Measured(0.4, 30), "after": Measured(0.9, 30)}}
    scores = score_checkpoints(strategy.store, fed.build_model(), [fed.client_data(1)])
    report = build_report(outcome, strategy.store, before=scores, after=scores)
    assert [(m.key, m.after.value) for m in report.measures] == [("zrf", 0.9)]
    assert "ZRF, by the clients on their own data" in report.measured
