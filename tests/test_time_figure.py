"""Time against every strategy: table, picture, and the script from end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulations.figures.time import __main__ as script
from simulations.figures.time import measure
from simulations.figures.time.measure import Measured
from simulations.figures.time.plot import LEGEND, beside, draw, limits
from simulations.figures.time.table import (
    FAILED,
    FORGETS,
    LOSES,
    REMEMBERS,
    YARDSTICK,
    claim,
    lines_of,
    markdown,
    write_csv,
)
from simulations.inheritance.config import Config
from simulations.inheritance.results import Row
from simulations.inheritance.world import World


def made(name: str, seconds: float, *rows: tuple[float, float], failed=None, wall=2.0) -> Measured:
    measured = tuple(Row(f"r{i}", name, *row) for i, row in enumerate(rows))
    return Measured(name, seconds, 3, 2_000_000, 1_000_000, wall, 2, measured, failed or {})


KNOWN = [
    made("before", 0.0, (0.9, 0.80), (0.8, 0.90)),
    made("retrain", 100.0, (0.00, 0.82), (0.02, 0.90), wall=None),
    made("fiun", 1.5, (0.00, 0.79), (0.03, 0.89)),
    made("mask", 0.0, (0.00, 0.80), (0.00, 0.90)),
    made("not", 20.0, (0.00, 0.60), (0.00, 0.90)),
    made("fine-tune", 10.0, (0.00, 0.80), (0.031, 0.90)),
    made("distill", 300.0, (0.00, 0.80), (0.80, 0.90), failed={"r1": "it | broke"}),
    made("federaser", 0.5, (0.9, 0.8), (0.8, 0.9), failed={"r0": "no updates", "r1": "no updates"}),
]


def test_lines_are_sorted_and_judged() -> None:
    lines = lines_of(KNOWN)
    assert [(line.strategy, line.verdict) for line in lines] == [
        ("mask", FORGETS),
        ("fiun", FORGETS),
        ("fine-tune", REMEMBERS),
        ("not", LOSES),
        ("retrain", YARDSTICK),
        ("distill", REMEMBERS),
        ("federaser", FAILED),
    ]
    fiun, distill, federaser = lines[1], lines[5], lines[6]
    assert (fiun.ratio, fiun.forget_mean, fiun.forget_worst) == pytest.approx((0.015, 0.015, 0.03))
    assert (fiun.retained_mean, fiun.retained_worst) == pytest.approx((0.84, 0.79))
    assert (fiun.rounds, fiun.mb_down, fiun.mb_up, fiun.wall, fiun.runs) == (3, 2.0, 1.0, 2.0, 2)
    assert distill.note == "left as they were: r1: it | broke"
    assert (federaser.forget_mean, federaser.retained_worst, federaser.note) == (None, None, "no updates")


def test_a_strategy_that_leaves_a_model_out_does_not_forget() -> None:
    perfect = made("not", 1.0, (0.0, 0.8), (0.0, 0.9), failed={"r1": "why"})
    assert lines_of([*KNOWN[:2], perfect])[0].verdict == REMEMBERS


def test_what_is_claimed() -> None:
    theirs = "; the paper claims 99 % less."
    start = "Owners' time against retraining: ours (fiun) "
    assert claim(lines_of(KNOWN)) == f"{start}98.5 % less{theirs}"
    slow = made("fiun", 150.0, (0.9, 0.8), (0.0, 0.9))
    assert claim(lines_of([*KNOWN[:2], slow])) == f"{start}50.0 % more, and does not forget{theirs}"
    nothing = made("fiun", 150.0, (0.9, 0.8), (0.8, 0.9), failed={"r0": "no", "r1": "no"})
    assert claim(lines_of([*KNOWN[:2], nothing])) == f"{start}changed no model{theirs}"
    assert claim(lines_of(KNOWN[:2])) == f"{start}was not run{theirs}"


def test_tables(tmp_path: Path) -> None:
    lines = lines_of(KNOWN)
    text = markdown(lines).splitlines()
    assert len(text) == 2 + len(lines)
    assert text[3].startswith(
        "| fiun | 1.5 | 0.0150 | 3 | 2 | 1 | 2 | 2 | 1.5 | 3.0 | 84.0 | 79.0 | forgets |"
    )
    assert "it \\| broke" in text[7]
    assert text[8].startswith("| federaser | 0.5 | 0.0050 | 3 | 2 | 1 | 2 | 2 | - | - | - | - | ")
    write_csv(lines, tmp_path / "time.csv")
    rows = list(csv.DictReader((tmp_path / "time.csv").open(encoding="utf-8")))
    assert [r["strategy"] for r in rows] == [line.strategy for line in lines]
    assert float(rows[1]["forget_worst"]) == 0.03
    assert rows[6]["forget_mean"] == ""


def test_picture() -> None:
    lines = lines_of(KNOWN)
    figure = draw(lines, "a title", "how it was measured")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "mask",
        "fiun (ours)",
        "fine-tune",
        "not",
        "retrain",
        "distill",
    ]
    hatches = [bar.get_hatch() for bar in ax.patches]
    assert hatches == [None, None, "////", "...", None, "////"]
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends[1:] == pytest.approx([line.seconds for line in lines[1:6]])
    assert ax.patches[0].get_width() == 0
    assert ax.get_xscale() == "log"
    texts = [t.get_text() for t in ax.texts]
    assert "1.5 s = 0.015 x retraining" in texts
    assert {"0 s", "100 s", "1.5 / 3.0", "84.0 / 79.0"} <= set(texts)
    said = [t.get_text() for t in figure.texts]
    notes = "distill: left as they were: r1: it | broke\nNot shown: federaser: no updates"
    assert said == ["a title", claim(lines), f"how it was measured\n{notes}"]
    assert {t.get_text() for t in figure.legends[0].get_texts()} == set(LEGEND.values())


def test_an_axis_has_room_for_what_is_there() -> None:
    low, high = limits([0.0, 0.3, 30.0])
    assert low == pytest.approx(0.1)
    assert high > 100
    assert limits([0.0])[0] > 0
    assert (
        beside(
            lines_of([KNOWN[0], made("retrain", 0.0, (0, 1), (0, 1)), made("not", 2.0, (0, 1), (0, 1))])[1]
        )
        == "2 s"
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text('scenario = "diamond"\ndataset = "digits"\nsamples = 300\nmodel = "mlp"\nepochs = 5\n')
    return path


def test_script(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    run = ["--config", str(config), "--out", str(out), "--set", "epochs=1", "--strategies", "mask,fine-tune"]
    assert script.main(run) == 0
    assert {p.name for p in out.iterdir()} == {
        "experiment", "strategies", "time.csv", "time.md", "time.pdf", "time.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "[2 of 2] fine-tune" in printed
    assert "ours (fiun) was not run; the paper claims 99 % less" in printed
    lines = {r["strategy"]: r for r in csv.DictReader((out / "time.csv").open())}
    assert set(lines) == {"mask", "fine-tune", "retrain"}
    assert float(lines["retrain"]["ratio"]) == 1.0
    assert lines["retrain"]["rounds"] == "4"
    assert lines["mask"]["verdict"] == FORGETS
    seconds = json.loads((out / "experiment" / "seconds.json").read_text())["retrain"]
    assert float(lines["retrain"]["seconds"]) == pytest.approx(sum(seconds.values()))

    assert "affected models were trained for 1 epochs, and a round of a strategy has as many" in printed

    def again(*args, **kwargs):
        raise AssertionError("run again")

    monkeypatch.setattr(measure, "forget_in_all", again)
    assert script.main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {line["strategy"] for line in found} == set(lines)
    assert script.main([*run, "--round-epochs", "2"]) == 1
    assert "holds results of other settings (round-epochs differ)" in capsys.readouterr().err


def test_what_is_measured_is_said(config: Path, tmp_path: Path) -> None:
    changes = {"scenario": "several", "first-epochs": 9, "optimizer": "adam", "lr": 0.002}
    world = World(Config.from_file(config, changes))
    work = measure.Work(SimpleNamespace(world=world), tmp_path)
    said = script._about(work, ["mask"])
    assert "trained for 5 or 9 epochs, and a round of a strategy has as many local epochs" in said
    assert "The graph was trained by adam; strategies train by SGD, with the same rate, 0.002." in said
    assert "a round of a strategy has 2 local" in script._about(replace(work, round_epochs=2), [])


def test_interrupting_says_how_to_go_on(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "_run", stop)
    assert script.main(["--config", str(config), "--out", str(tmp_path)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--strategies", "mask,fine-tun"], "did you mean 'fine-tune'?"),
        (["--set", "epoch=3"], "did you mean 'epochs'?"),
        (["--set", "epochs"], "must look like epochs=3, got 'epochs'"),
        (["--set", "epochs=few"], "epochs must be"),
        (["--round-epochs", "-1"], "--round-epochs must be at least 0, got -1"),
        (["--config", "no.toml"], "cannot read the config no.toml"),
    ],
)
def test_what_is_wrong_is_said_before_training(config, tmp_path, capsys, given, said) -> None:
    out = tmp_path / "out"
    assert script.main(["--config", str(config), "--out", str(out), *given]) == 1
    assert said in capsys.readouterr().err
    assert not (out / "experiment" / "models").exists()
