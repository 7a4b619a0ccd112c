"""The record of a request: JSON round trip, the Markdown's numbers, refusal, atomic writing, honest words."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fl_unlearn.report as report_module
from fl_unlearn.metrics.contract import Measured
from fl_unlearn.report import (
    CandidateRow,
    ClientLists,
    Cost,
    MeasureRow,
    ModelRow,
    RetrainedScores,
    UnlearnReport,
    default_caveats,
    write_report,
)
from fl_unlearn.types import ForgetRequest, LineageError, UnlearnError

MODEL_KEYS = {
    "node", "kind", "round", "affected", "forget_accuracy_before", "forget_accuracy_after",
    "retain_accuracy_before", "retain_accuracy_after",
}  # fmt: skip
COST_KEYS = {
    "train_client_seconds", "train_wall_seconds", "forget_client_seconds", "forget_wall_seconds",
    "bytes_up", "bytes_down", "retrain_client_seconds",
}  # fmt: skip
CONTRACT = {
    "schema_version", "request", "models", "final", "retrained", "cost", "threshold", "fisher_kind",
    "fisher_scope", "seed", "versions", "outcome", "message", "candidates", "clients", "class_accuracy",
    "measured", "not_measured", "measures", "document", "refusals",
}  # fmt: skip
FILES = {"report.json", "report.md", "lineage.png", "models.png", "classes.png"}


def lineage() -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_node("init", kind="initial", round=0, owner=None)
    for name, kind, owner in (
        ("c1", "client-update", "1"),
        ("c2", "client-update", "2"),
        ("r1", "aggregate", None),
    ):
        graph.add_node(name, kind=kind, round=1, owner=owner)
    graph.add_edges_from([("init", "c1"), ("init", "c2"), ("c1", "r1"), ("c2", "r1")], weight=0.5)
    return graph


def committed(**changes: Any) -> UnlearnReport:
    models = [
        ModelRow("r1", "aggregate", 1, True, 0.912, 0.004, 0.95, 0.931),
        ModelRow("init", "initial", 0, False, 0.1, 0.1, 0.11, 0.11),
        ModelRow("c2", "client-update", 1, False, None, None, 0.8, 0.8),
        ModelRow("c1", "client-update", 1, True, 0.977, 0.013, 0.9, 0.85),
    ]
    base: dict[str, Any] = {
        "request": ForgetRequest((3,), (), "a customer left"),
        "outcome": "committed",
        "message": "Applied to two checkpoints.",
        "threshold": 5.0,
        "fisher_kind": "normalized",
        "fisher_scope": "head",
        "seed": 7,
        "versions": {"torch": "2.4", "python": "3.11"},
        "final": models[0],
        "models": models,
        "retrained": RetrainedScores(0.001, 0.9432),
        "cost": Cost(200.0, 80.0, 4.0, 2.0, 1234567, 89, 150.0),
        "clients": ClientLists(
            asked=["10", "2", "1"], answered=["1", "2"], holders=["1"], outstanding=["10"]
        ),
        "candidates": [
            CandidateRow(5.0, 0.01, 0.9, 0.021, True, committed=True),
            CandidateRow(1.0, 0.0, 0.6, 0.345, False),
        ],
        "class_accuracy": {"before": {10: 0.9, 3: 0.912, 2: None}, "after": {10: 0.88, 3: 0.004, 2: None}},
        "measured": ["Accuracy on 360 held-out samples."],
        "not_measured": default_caveats("head"),
    }
    return UnlearnReport(**{**base, **changes})


def refused(**changes: Any) -> UnlearnReport:
    final = ModelRow("r1", "aggregate", 1, True, 0.912, None, 0.95, None)
    base: dict[str, Any] = {
        "outcome": "refused",
        "message": "No threshold kept the retained classes within 5 points.",
        "threshold": None,
        "candidates": [CandidateRow(1.0, 0.0, 0.6, 0.345, False)],
        "final": final,
        "models": [final],
        "retrained": None,
        "class_accuracy": {"before": {3: 0.912}, "after": {}},
    }
    return committed(**{**base, **changes})


def page(report: UnlearnReport, folder: Path) -> str:
    return write_report(report, folder)["report.md"].read_text(encoding="utf-8")


def test_json_has_exactly_the_agreed_names() -> None:
    plain = committed().to_json()
    assert set(plain) == CONTRACT
    assert plain["schema_version"] == "1.2"
    assert plain["request"] == {"classes": [3], "clients": [], "reason": "a customer left"}
    assert all(set(m) == MODEL_KEYS for m in [*plain["models"], plain["final"]])
    assert set(plain["retrained"]) == {"forget_accuracy", "retain_accuracy"}
    assert set(plain["cost"]) == COST_KEYS
    wanted = {"threshold", "forget_accuracy", "retain_accuracy", "worst_retain_drop", "passed"}
    wanted |= {"dampening", "worst_forget_accuracy", "committed"}
    assert all(set(c) == wanted for c in plain["candidates"])
    assert set(plain["clients"]) == {"asked", "answered", "holders", "failed", "outstanding"}


def test_reports_of_the_first_version_are_read() -> None:
    plain = {**committed().to_json(), "schema_version": "1.0"}
    for newer in ("measures", "document", "refusals"):
        del plain[newer]
    assert UnlearnReport.from_json(plain) == committed()


def test_measures_in_json() -> None:
    before, after = Measured(0.75, 30), Measured(None, 0, "no answer in time")
    row = MeasureRow("mia", "membership", "%", "retrained", "About it.", before, after)
    plain = committed(measures=[row]).to_json()
    assert plain["measures"] == [
        {
            **{"key": "mia", "title": "membership", "unit": "%", "good": "retrained", "about": "About it."},
            "before": {"value": 0.75, "samples": 30, "why": ""},
            "after": {"value": None, "samples": 0, "why": "no answer in time"},
        }
    ]
    assert UnlearnReport.from_json(plain) == committed(measures=[row])
    with pytest.raises(UnlearnError, match="JSON"):
        committed(measures=[dataclasses.replace(row, before=Measured(math.nan, 3))]).to_json()


def test_json_is_in_a_sensible_order() -> None:
    plain = committed().to_json()
    assert [m["node"] for m in plain["models"]] == ["init", "c1", "c2", "r1"]
    assert [c["threshold"] for c in plain["candidates"]] == [1.0, 5.0]
    assert list(plain["class_accuracy"]["before"]) == ["2", "3", "10"]
    assert plain["clients"]["asked"] == ["1", "2", "10"]
    assert list(plain["versions"]) == ["python", "torch"]


@pytest.mark.parametrize("make", [committed, refused])
def test_json_round_trip(make: Any, tmp_path: Path) -> None:
    report = make()
    paths = write_report(report, tmp_path)
    read = json.loads(paths["report.json"].read_text(encoding="utf-8"))
    assert UnlearnReport.from_json(read) == report
    assert read == report.to_json()


share = st.none() | st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(), share, share, share, share, st.booleans())), st.text(), share)
def test_json_round_trip_of_anything(rows: list[tuple], message: str, accuracy: float | None) -> None:
    models = [ModelRow(r[0], "aggregate", i, r[5], *r[1:5]) for i, r in enumerate(rows)]
    report = committed(models=models, message=message, class_accuracy={"before": {0: accuracy}, "after": {}})
    assert UnlearnReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_later_minor_versions_are_read_and_unknown_names_left_out() -> None:
    plain = {**committed().to_json(), "schema_version": "1.9", "novelty": 1}
    plain["final"] = {**plain["final"], "novelty": 2}
    assert UnlearnReport.from_json(plain) == committed()


@pytest.mark.parametrize("version", [None, "2.0", "10.0", "0.9", 1.0, "", "1"])
def test_other_major_versions_are_refused(version: Any) -> None:
    with pytest.raises(UnlearnError, match=r"schema_version must be 1\.x, got " + re.escape(repr(version))):
        UnlearnReport.from_json({**committed().to_json(), "schema_version": version})


@pytest.mark.parametrize("value", [None, [], "text", {}])
def test_a_missing_version_is_refused(value: Any) -> None:
    with pytest.raises(UnlearnError, match="schema_version must be 1"):
        UnlearnReport.from_json(value)


@pytest.mark.parametrize(
    "name",
    sorted(
        CONTRACT
        - {
            "schema_version",
            "candidates",
            "clients",
            "class_accuracy",
            "measured",
            "not_measured",
            "measures",
            "document",
            "refusals",
        }
    ),
)
def test_a_missing_name_is_named(name: str) -> None:
    plain = committed().to_json()
    del plain[name]
    with pytest.raises(UnlearnError, match=name):
        UnlearnReport.from_json(plain)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 91.2, "0.5", True])
def test_values_that_are_no_share_are_refused(bad: Any) -> None:
    with pytest.raises(UnlearnError, match=r"ModelRow\.retain_accuracy_after"):
        ModelRow("a", "aggregate", 1, True, 0.5, 0.5, 0.5, bad)
    with pytest.raises(UnlearnError, match="accuracy after of 3"):
        committed(class_accuracy={"after": {3: bad}})


def test_other_senseless_values_are_refused() -> None:
    with pytest.raises(UnlearnError, match=r"Cost\.bytes_up"):
        Cost(bytes_up=-1)
    with pytest.raises(UnlearnError, match=r"CandidateRow\.threshold"):
        CandidateRow(math.nan, None, None, None, False)
    with pytest.raises(UnlearnError, match="JSON"):
        committed(versions={"torch": object()}).to_json()
    assert CandidateRow(1.0, 0.0, 1.0, -0.3, True).worst_retain_drop == -0.3


def test_numpy_numbers_become_plain() -> None:
    row = ModelRow("a", "aggregate", 1, True, np.float32(0.5), np.float64(0.25), 0, 1)
    assert type(row.forget_accuracy_before) is float
    assert type(Cost(bytes_up=np.int64(3)).bytes_up) is int


@pytest.mark.parametrize(("outcome", "threshold"), [("refused", 3.0), ("committed", None), ("done", 3.0)])
def test_outcome_and_threshold_must_agree(outcome: Any, threshold: float | None) -> None:
    with pytest.raises(UnlearnError, match="outcome must be"):
        committed(outcome=outcome, threshold=threshold)


def test_markdown_of_a_committed_report(tmp_path: Path) -> None:
    text = page(committed(), tmp_path)
    assert "forgotten classes fell from 91.2 % to 0.4 %" in text
    assert "retained classes fell from 95.0 % to 93.1 %" in text
    assert f"| forgotten | 91.2 % | 0.4 % | {100 * (0.912 - 0.004):.1f} | 0.1 % |" in text
    assert f"| retained | 95.0 % | 93.1 % | {100 * (0.95 - 0.931):.1f} | 94.3 % |" in text
    drops = [0.95 - 0.931, 0.9 - 0.85]
    assert "2 of 4 stored models are affected; 2 of them were measured" in text
    assert f"mean {100 * sum(drops) / 2:.1f}, worst {100 * max(drops):.1f} (c1)" in text
    assert "97.7 % before, 1.3 % after" in text
    assert "| 1 | 1 | 0.0 % | not measured | 60.0 % | 34.5 | no |" in text
    assert "| 5 | 1 | 1.0 % | not measured | 90.0 % | 2.1 | yes, committed |" in text
    assert f"Forgetting : retraining = 1 : {150 / 4:.1f} in client seconds ({100 * 4 / 150:.1f} %)" in text
    assert f"Forgetting : training = 1 : {200 / 4:.1f} in client seconds" in text
    assert f"Forgetting : training = 1 : {80 / 2:.1f} in wall seconds" in text
    assert "1,234,567 up" in text
    assert "- Outstanding (1): 10" in text
    assert "next contact" in text
    assert "Accuracy on 360 held-out samples." in text


def test_markdown_of_a_refused_report(tmp_path: Path) -> None:
    text = page(refused(), tmp_path)
    assert "**Refused: no update was committed.** No threshold kept the retained classes" in text
    assert "| forgotten | 91.2 % | not measured | not measured | not measured |" in text
    assert "fell" not in text
    assert "next contact" not in text
    assert "committed |" not in text


def test_markdown_without_numbers(tmp_path: Path) -> None:
    nothing = ModelRow("r1", "aggregate", 1, True)
    bare = committed(final=nothing, models=[], cost=Cost(), candidates=(), clients=ClientLists(), measured=())
    text = page(dataclasses.replace(bare, retrained=None, class_accuracy={}), tmp_path)
    assert "0 of 0 stored models" in text
    assert "final model was not measured in full" in text
    assert "1 :" not in text
    assert "nan" not in text.lower()


def test_markdown_says_when_accuracy_rose_or_stayed(tmp_path: Path) -> None:
    final = ModelRow("r1", "aggregate", 1, True, 0.0, 0.0, 0.9, 0.912)
    text = page(committed(final=final), tmp_path)
    assert "forgotten classes stayed at 0.0 %" in text
    assert "retained classes rose from 90.0 % to 91.2 %" in text
    assert "| retained | 90.0 % | 91.2 % | -1.2 |" in text
    assert "-0.0" not in text


def test_text_from_outside_cannot_change_the_page(tmp_path: Path) -> None:
    request = ForgetRequest((3,), ("a|b",), "x\n# Heading <script>")
    text = page(committed(request=request), tmp_path)
    assert "\\<script\\>" in text
    assert "a\\|b" in text
    assert "\n# Heading" not in text


@pytest.mark.parametrize("make", [committed, refused])
@pytest.mark.parametrize("scope", ["head", "all", "fc1.*,fc2.*"])
def test_nothing_claims_more_than_was_measured(make: Any, scope: str, tmp_path: Path) -> None:
    text = page(make(not_measured=default_caveats(scope)), tmp_path).lower()
    assert not re.search(r"\b(eras|delet|remov|destroy)", text)
    assert "accuracy alone does not prove" in text
    for word in ("membership inference", "feature probes", "relearning", "linear probe"):
        assert word in text


def test_caveats_tell_what_the_scope_leaves() -> None:
    assert any(
        "only the last layer" in c and "can still tell the class" in c for c in default_caveats("head")
    )
    assert not any("last layer" in c for c in default_caveats("all"))
    assert any("'all'" in c for c in default_caveats("all"))
    assert any("erased in the outputs of fc1, fc2" in c for c in default_caveats("head", ("fc1", "fc2")))


def test_written_files_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(committed(), folder, graph=lineage())
    assert set(paths) == FILES == {p.name for p in folder.iterdir()}
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", paths["report.md"].read_text(encoding="utf-8"))
    assert set(links) == {n for n in FILES if n.endswith(".png")}
    assert all(paths[n].read_bytes().startswith(b"\x89PNG") for n in links)


def test_without_a_graph_no_lineage_is_left(tmp_path: Path) -> None:
    write_report(committed(), tmp_path, graph=lineage())
    paths = write_report(refused(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(paths) == FILES - {"lineage.png"}
    assert "lineage.png" not in paths["report.md"].read_text(encoding="utf-8")
    assert json.loads(paths["report.json"].read_text(encoding="utf-8"))["outcome"] == "refused"


@pytest.mark.parametrize("stage", ["draw", "save"])
def test_a_failing_picture_leaves_everything_as_it_was(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(committed(), tmp_path, graph=lineage())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    class Broken:
        def savefig(self, path: Path, **_: Any) -> None:
            Path(path).write_bytes(b"half")
            raise RuntimeError("no picture")

    def fails(*_: Any) -> Any:
        if stage == "draw":
            raise RuntimeError("no picture")
        return Broken(), []

    monkeypatch.setattr(report_module, "classes_figure", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        write_report(refused(), tmp_path, graph=lineage())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(RuntimeError, match="no picture"):
        write_report(refused(), tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "report.json").exists()


def test_a_graph_without_an_affected_model_is_refused(tmp_path: Path) -> None:
    graph = lineage()
    graph.remove_node("c1")
    with pytest.raises(LineageError, match="'c1'"):
        write_report(committed(), tmp_path, graph=graph)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnlearnError, match=r"cannot write to .*file"):
        write_report(committed(), tmp_path / "file")
