"""The command that makes the figures on graphs, from configs to files, on scikit-learn's digits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.compare.local import LocalFederation
from simulations.figures.inherited import command
from simulations.figures.inherited.__main__ import main
from simulations.figures.inherited.drawing import save
from simulations.inheritance import __main__ as inheritance

CONFIG = """
dataset = "digits"
model = "mlp"
samples = 300
test-samples = 200
epochs = 2
first-epochs = 6
batch-size = 16
calibration-samples = 20
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    def write(scenario: str, more: str = "") -> str:
        path = tmp_path / f"{scenario}.toml"
        path.write_text(f'scenario = "{scenario}"\n{CONFIG}{more}')
        return str(path)

    return write


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return main([*arguments, "--out", str(tmp_path / "out"), "--experiments", str(tmp_path / "graphs")])

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def asked(monkeypatch: pytest.MonkeyPatch, most: int = 10**9) -> list[str]:
    """The tasks that owners are asked from now on; beyond ``most`` somebody presses Ctrl-C."""
    tasks: list[str] = []
    ask = LocalFederation.ask

    def counted(self: LocalFederation, task: str, *arguments: Any) -> Any:
        if len(tasks) >= most:
            raise KeyboardInterrupt
        tasks.append(task)
        return ask(self, task, *arguments)

    monkeypatch.setattr(LocalFederation, "ask", counted)
    return tasks


def only_pictures_of(monkeypatch: pytest.MonkeyPatch, figure: str) -> None:
    """Every figure is drawn, and one of them rendered: that is what takes the time."""
    monkeypatch.setattr(
        command, "save", lambda drawn, at: save(drawn, at) if at.name.startswith(figure) else []
    )


def test_models_that_have_forgotten_for_good_are_not_tried_on(
    tmp_path: Path, config: Callable[..., str], make: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path, graphs = config("diamond", 'methods = "ours"\nthreshold = 3.0\n'), str(tmp_path / "graphs")
    assert inheritance.main([path, "--out", graphs, "--commit"]) == 0
    assert make("threshold", "--config", path, "--thresholds", "2") == 1
    assert "have forgotten for good" in capsys.readouterr().err
    assert make("single-class", "--config", path) == 0  # measured before


def test_every_figure_and_nothing_twice(
    tmp_path: Path,
    config: Callable[..., str],
    make: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["single-class", "several-classes", "threshold", "depth", "scope", "mfim", "overlap"]
    order = [*names, "--config", config("several"), "--thresholds", "1,3", "--overlaps", "1", "--json"]
    only_pictures_of(monkeypatch, "mfim")
    assert make(*order) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [figure["figure"] for figure in shown] == names
    assert list(shown[0]["left-out"]) == list(shown[3]["left-out"]) == ["several"]
    out = tmp_path / "out"
    for figure in shown:
        if not figure["left-out"]:
            wanted = {f"{figure['figure']}.csv", f"{figure['figure']}.md"}
            wanted |= {"mfim-several.png", "mfim-several.pdf"} if figure["figure"] == "mfim" else set()
            assert {Path(f).name for f in figure["files"]} == wanted
            assert all(Path(f).stat().st_size > 100 for f in figure["files"])
    assert "the paper's claim: 1.07% forgotten, 84.77%" in shown[1]["said"][0]

    found = rows(out / "several-classes.csv")
    affected = [r for r in found if r["affected"] == "True"]
    assert {r["method"] for r in affected} == {"before", "ours", "paper", "retrained"}
    assert max(float(r["forget"]) for r in affected if r["method"] == "retrained") == 0.0
    assert min(float(r["forget"]) for r in affected if r["method"] == "before") > 0.3
    _thresholds_agree(out)

    before = {path: path.read_bytes() for path in out.iterdir()}
    tasks = asked(monkeypatch)
    only_pictures_of(monkeypatch, "none")
    assert make(*order) == 0
    assert tasks == []
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def _thresholds_agree(out: Path) -> None:
    """The figures of threshold and merging try the same update at the same t."""
    curves = rows(out / "threshold.csv")
    assert {(r["way"], r["threshold"]) for r in curves if not r["chosen"] and r["threshold"]} == {
        *(("ours", t) for t in ("1.0", "3.0")),
        *(("paper", t) for t in ("1.0", "3.0")),
    }

    def at(found: list[dict[str, str]], way: str) -> dict[str, tuple[str, str]]:
        own = [r for r in found if (r["way"], r["threshold"], r["chosen"]) == (way, "3.0", "")]
        return {r["model"]: (r["forget"], r["retained"]) for r in own}

    merged = rows(out / "mfim.csv")
    assert at(curves, "ours") == at(merged, "max")
    assert len(at(merged, "max")) >= 3
    assert {r["way"] for r in merged} == {
        *("before", "retrained", "max", "mean", "sum", "max-divided", "sequential")
    }


def test_an_interrupted_command_goes_on(
    tmp_path: Path,
    config: Callable[..., str],
    make: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    order = ["threshold", "--config", config("diamond"), "--thresholds", "3"]
    only_pictures_of(monkeypatch, "none")
    with monkeypatch.context() as patch:
        first = asked(patch, most=5)
        assert make(*order) == 130
    assert "goes on from here" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        rest = asked(patch)
        assert make(*order) == 0
    assert first.count("inheritance.train") + rest.count("inheritance.train") == 6 + 4, "each model once"
    found = (tmp_path / "out" / "threshold.csv").read_bytes()
    assert main([*order, "--out", str(tmp_path / "o"), "--experiments", str(tmp_path / "afresh")]) == 0
    assert (tmp_path / "o" / "threshold.csv").read_bytes() == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["treshold"], "unknown figure 'treshold' (did you mean 'threshold'?)"),
        (["depth", "--set", "epoch=3"], "unknown key 'epoch' (did you mean 'epochs'?)"),
        (["depth", "--set", "model=resnet19"], "did you mean 'resnet18'?"),
        (["threshold", "--thresholds", "1,x"], "--thresholds must be numbers"),
        (["threshold", "--thresholds", "0,1"], "a threshold must be a finite number above 0, got 0"),
        (["overlap", "--overlaps", "0.5,2"], "an overlap must be between 0 and 1, got 2"),
        (["mfim"], "no figure fits any of the configs: mfim: diamond: there is nothing to merge"),
        (
            ["overlap", "--set", "scenario=incremental"],
            "overlap: diamond: the label overlap cannot be chosen",
        ),
        (["depth", "--set", "forget=12"], "class 12 is to be forgotten, but the 10 classes are 0 to 9"),
        (["depth", "--set", "model=lstm"], "lstm takes texts"),
    ],
)
def test_bad_orders_are_refused_before_anything_is_trained(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    config: Callable[..., str],
    make: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert make(*arguments, "--config", config("diamond")) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "graphs").exists()


def test_configs_of_the_same_name_are_refused(
    tmp_path: Path, config: Callable[..., str], make: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = config("diamond")
    (tmp_path / "more").mkdir()
    second = tmp_path / "more" / "diamond.toml"
    second.write_text(Path(first).read_text())
    assert make("depth", "--config", first, str(second)) == 1
    assert "two configs are called 'diamond'" in capsys.readouterr().err


def test_help_lists_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "one class: both accuracies of every model" in text
    assert "ablation of MFIM" in text
