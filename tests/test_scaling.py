"""The script that measures unlearning over random graphs: its rows, resumption, table and picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fl_unlearn import ModelGraph
from simulations.figures.scaling import __main__ as script
from simulations.figures.scaling import measure, show

QUICK = ["--max-examples", "200", "--owners", "2", "--epochs", "2", "--retrain", "2"]


def run(out: Path, *arguments: str) -> int:
    return script.main([*arguments, *QUICK, "--out", str(out)])


def test_rows_table_and_picture(tmp_path, capsys):
    assert run(tmp_path, "5", "3", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["affected"], r["models"]) for r in rows] == [(3, 4), (5, 7)]
    for row in rows:
        assert set(row) == set(show.COLUMNS)
        assert (row["retrained_models"], row["forget_after"]) == (2, row["forget_after_worst"])
        assert row["forget_before"] > 0.2 > row["forget_after"]
        assert row["retain_before"] > 0.5
        assert row["retrain_seconds"] == row["affected"] * row["retrain_one_seconds"] > 0
        parts = ("client_seconds", "server_seconds", "apply_seconds")
        assert row["unlearn_seconds"] == pytest.approx(sum(row[name] for name in parts))
        assert row["ratio"] == row["retrain_seconds"] / row["unlearn_seconds"]
    with open(tmp_path / "table.csv", newline="") as f:
        read = list(csv.DictReader(f))
    assert [r["affected models"] for r in read] == ["3", "5"]
    extrapolated = [title for title in read[0] if "extrapolated" in title]
    assert len(extrapolated) == 4
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert (len(lines), lines[0].count("extrapolated")) == (4, 4)
    figure = show.draw(rows)
    assert [len(ax.lines) for ax in figure.axes] == [5, 5]
    assert "extrapolated from 2 models" in figure.axes[0].get_legend().get_texts()[0].get_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert (tmp_path / "scaling.pdf").read_bytes().startswith(b"%PDF")
    assert not list(tmp_path.glob("models-*"))
    # What is there is not measured again; other options are not mixed with it.
    assert run(tmp_path, "5", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert run(tmp_path, "5", "--seed", "1") == 1
    assert "holds results of other options" in capsys.readouterr().err


def test_an_interrupted_measurement_goes_on(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "find", interrupted)
        assert run(tmp_path, "3") == 130
    with ModelGraph(tmp_path / "models-3" / "trained") as graph:
        assert len(graph.umig) == 4
    trained, train = [], measure._Training.train

    def noted(self, model, start, retained=False):
        trained.append(retained)
        return train(self, model, start, retained)

    monkeypatch.setattr(measure._Training, "train", noted)
    assert run(tmp_path, "3") == 0
    assert trained == [True, True]  # retraining alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--share", "1.5"], "share between 0 and 1, got 0.05 and 1.5"),
        (["--forget", "12"], "forget must name some of the labels 0 to 9"),
        (["--owners", "1"], "at least 2 owners"),
        (["--data", "/nowhere"], "/nowhere"),
        (["0"], "models must be affected, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, capsys, arguments, message):
    assert script.main([*arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("models-*"))


def test_options_that_were_refused_do_not_claim_a_folder(tmp_path, capsys):
    assert run(tmp_path, "3", "--forget", "12") == 1
    assert run(tmp_path, "0", "--seed", "2") == 1
    assert "holds results" not in capsys.readouterr().err
    (tmp_path / "rows").mkdir()
    assert run(tmp_path, "0", "--seed", "3") == 1
    assert "holds results of other options" in capsys.readouterr().err
