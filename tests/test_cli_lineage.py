from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import networkx as nx
import pytest
import runs
from cases_cli import REQUEST, forget, run, run_json, run_lines

from fl_unlearn import lineage_io
from fl_unlearn.cli import exports
from fl_unlearn.run_store import RunStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.filled(tmp_path / "run", rounds=4).close()
    return tmp_path / "run"


def affected(folder: Path, *owners: str) -> list[str]:
    with RunStore(folder, read_only=True) as store:
        return [n.name for n in store.umig.affected(n.name for n in store.umig.roots(owners))]


# --------------------------------------------------------------------------- summary
def test_summary(folder):
    with RunStore(folder) as store:
        store.record("only a node", None, kind="stage", round_=4)
    found = run_json("lineage", folder)
    usual = {"client-update": 2, "aggregate": 1}
    assert (found["store"], found["models"]) == (str(folder), 14)
    assert found["rounds"] == [
        {"round": 0, "kinds": {"initial": 1}, "checkpoints": 1},
        *({"round": r, "kinds": usual, "checkpoints": 3} for r in (1, 2, 3)),
        {"round": 4, "kinds": {**usual, "stage": 1}, "checkpoints": 3},
    ]
    lines = run("lineage", folder).stdout.splitlines()
    assert lines[0].split() == ["round", "initial", "client-update", "aggregate", "stage", "checkpoints"]
    assert [line.split() for line in (lines[1], lines[5])] == [[*"010001"], [*"402113"]]
    assert lines[-1] == "14 models in 5 rounds"


def test_a_long_summary_is_cut_for_people(folder):
    lines = run("lineage", folder, "--limit", 2).stdout.splitlines()
    assert lines[3:] == ["... and 3 more rounds (--limit 0 shows all)", "13 models in 5 rounds"]
    assert len(run("lineage", folder, "--limit", 0).stdout.splitlines()) == 7


# --------------------------------------------------------------------------- affected models
def test_affected_by_a_client(folder):
    with RunStore(folder, keep=runs.ALL) as store:
        store.record("late", runs.state(9), kind="client-update", round_=3, parents={"g2": 1.0}, owner="7")
        store.record("g5", None, kind="aggregate", round_=5, parents={"late": 1.0, "g4": 0.0})
    lines = run_lines("lineage", folder, "--affected-by", "client:7")
    with RunStore(folder, read_only=True) as store:
        digest = store.info("late").digest
    assert [line["name"] for line in lines] == ["late", "g5"] == affected(folder, "7")
    assert lines[0] == {
        "order": 14,
        "name": "late",
        "kind": "client-update",
        "round": 3,
        "owner": "7",
        "examples": None,
        "checkpoint": digest,
        "metadata": {},
    }
    assert lines[1]["checkpoint"] is None
    text = run("lineage", folder, "--affected-by", "client:7").stdout
    assert re.search(rf"3 +late +client-update +7 +- +{digest[:12]}", text)
    assert text.endswith("2 models affected, starting from late\n")


def test_a_client_is_known_by_its_own_name_once_it_has_one(folder):
    with RunStore(folder) as store:
        store.identify("1", "hospital: B")
    lines = run_lines("lineage", folder, "--affected-by", "client:hospital: B")
    assert [line["name"] for line in lines] == affected(folder, "1")
    failed = run("lineage", folder, "--affected-by", "client:1", code=2)
    assert "no model was recorded for a client '1'; known: 0, hospital: B" in failed.stderr


def test_a_long_list_is_cut_for_people_only(folder):
    lines = run("lineage", folder, "--affected-by", "client:0", "--limit", 3).stdout.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == affected(folder, "0")[:3]
    assert lines[4] == "... and 8 more models (--limit 0 shows all)"
    assert lines[5].startswith("11 models affected")
    assert len(run_lines("lineage", folder, "--affected-by", "client:0")) == 11
    assert len(run_lines("lineage", folder, "--affected-by", "client:0", "--limit", 3)) == 3


def test_pages_of_a_long_list_join_up(folder, monkeypatch):
    monkeypatch.setattr("fl_unlearn.cli.output.PAGE", 4)
    lines = run("lineage", folder, "--affected-by", "client:0", "--limit", 0).stdout.splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == affected(folder, "0")


def test_affected_by_a_class_is_what_requests_found(folder):
    with RunStore(folder) as store:
        forget(store, owner="1")
    lines = run_lines("lineage", folder, "--affected-by", "class:3")
    assert [line["name"] for line in lines] == affected(folder, "1") != affected(folder, "0")


def test_a_class_whose_request_names_only_holders(folder):
    with RunStore(folder) as store:
        store.operations.decide("a" * 64, "a" * 64, {**REQUEST, "holders": ["0"]}, (), ())
    lines = run_lines("lineage", folder, "--affected-by", "class:3")
    assert [line["name"] for line in lines] == affected(folder, "0")


@pytest.mark.parametrize("request_", [None, {"classes": [4]}, {"classes": [3]}, {"classes": None}, {}])
def test_a_class_that_no_request_tells_of(folder, request_):
    if request_ is not None:
        with RunStore(folder) as store:
            store.operations.decide("a" * 64, "a" * 64, request_, (), ())
    failed = run("lineage", folder, "--affected-by", "class:3", code=2)
    assert failed.stdout == ""
    assert "no request to forget class 3" in failed.stderr
    assert "--affected-by client:" in failed.stderr


@pytest.mark.parametrize(
    "target", ["", "3", "class:", "class:x", "class:-1", "class:3,4", "client:", "node:g0"]
)
def test_targets_that_are_none(folder, target):
    failed = run("lineage", folder, "--affected-by", target, code=2)
    assert "class:N" in failed.stderr
    assert failed.stdout == ""


# --------------------------------------------------------------------------- exports
def test_exports_hold_the_whole_graph(folder, tmp_path):
    with RunStore(folder, read_only=True) as store:
        expected = lineage_io.to_node_link(store.umig)
    for name in ("g.graphml", "g.graphml.gz", "g.json"):
        file = tmp_path / name
        run("lineage", folder, "--export", file)
        graph = (
            lineage_io.from_node_link(json.loads(file.read_text()))
            if name == "g.json"
            else lineage_io.read_graphml(file)
        )
        assert lineage_io.to_node_link(graph) == expected
    with gzip.open(tmp_path / "g.graphml.gz") as file:
        assert file.read() == (tmp_path / "g.graphml").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.graphml", "g.graphml.gz", "g.json", "run"]


def test_dot_export_colours_what_is_affected(folder, tmp_path):
    run("lineage", folder, "--export", tmp_path / "g.dot", "--affected-by", "client:0")
    text = (tmp_path / "g.dot").read_text()
    assert set(re.findall(r'"(\S+)" \[label=.*fillcolor', text)) == set(affected(folder, "0"))
    run("lineage", folder, "--export", tmp_path / "g.dot")
    assert (tmp_path / "g.dot").read_text().count("fillcolor") == 1, "only the default is left"


def test_with_json_nothing_but_json_is_on_stdout(folder, tmp_path):
    result = run(
        "lineage", folder, "--json", "--export", tmp_path / "g.json", "--picture", tmp_path / "g.png"
    )
    assert json.loads(result.stdout)["models"] == 13
    assert f"wrote {tmp_path / 'g.json'}" in result.stderr


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--export", "g.csv", ".graphml.gz"),
        ("--export", "g", ".graphml.gz"),
        ("--export", "lineage.sqlite", ".graphml.gz"),
        ("--picture", "g.bmp", ".png"),
        ("--export", "none/g.json", "folder"),
        ("--picture", "dir.png", "folder"),
    ],
)
def test_files_that_cannot_be_written_are_refused_first(folder, tmp_path, option, name, message):
    (tmp_path / "dir.png").mkdir()
    failed = run("lineage", folder, option, tmp_path / name, code=2)
    assert message in " ".join(failed.stderr.replace("│", "").split())
    assert failed.stdout == ""


def test_a_failing_export_leaves_the_old_file(folder, tmp_path, monkeypatch):
    def fail(umig):
        raise OSError(28, "No space left on device")

    (tmp_path / "g.json").write_text("old")
    monkeypatch.setattr(lineage_io, "to_node_link", fail)
    assert "No space left" in run("lineage", folder, "--export", tmp_path / "g.json", code=2).stderr
    assert (tmp_path / "g.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "run"]


# --------------------------------------------------------------------------- pictures
@pytest.fixture
def drawn(monkeypatch):
    """The graphs and affected nodes that were drawn."""
    from fl_unlearn import figures

    calls, real = [], figures.lineage_figure

    def lineage_figure(graph, affected):
        calls.append((graph, set(affected)))
        return real(graph, affected)

    monkeypatch.setattr(figures, "lineage_figure", lineage_figure)
    return calls


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")])
def test_picture(folder, tmp_path, drawn, name, start):
    shown = run("lineage", folder, "--picture", tmp_path / name, "--affected-by", "client:1").stdout
    assert shown.endswith(f"wrote {tmp_path / name} (13 models)\n")
    assert (tmp_path / name).read_bytes().startswith(start)
    ((graph, marked),) = drawn
    with RunStore(folder, read_only=True) as store:
        whole = lineage_io.to_networkx(store.umig)
    assert nx.utils.graphs_equal(nx.DiGraph(graph.edges), nx.DiGraph(whole.edges))
    assert set(graph) == set(whole)
    assert marked == set(affected(folder, "1"))


def test_of_a_large_graph_the_first_rounds_are_drawn(folder, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(exports, "MOST_DRAWN", 8)
    shown = run("lineage", folder, "--picture", tmp_path / "p.png", "--affected-by", "client:1").stdout
    assert "(7 models: only rounds 0 to 2 of 4, a picture holds 8)" in shown
    ((graph, marked),) = drawn
    assert set(graph) == {"g0", "r1-0", "r1-1", "g1", "r2-0", "r2-1", "g2"}
    assert marked == {"r1-1", "g1", "r2-0", "r2-1", "g2"}


def test_a_round_too_large_to_be_drawn(tmp_path, monkeypatch):
    with RunStore(tmp_path / "run") as store:
        for i in range(3):
            store.record(f"w{i}", None, kind="worker", round_=0)
    monkeypatch.setattr(exports, "MOST_DRAWN", 2)
    failed = run("lineage", tmp_path / "run", "--picture", tmp_path / "p.png", code=2)
    assert "--export" in failed.stderr
    assert not (tmp_path / "p.png").exists()
