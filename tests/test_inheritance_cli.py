"""The command and its tables: what it prints and writes, and that a config that fails stops no other."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from inheritance_cases import TINY

from simulations.inheritance import __main__ as command
from simulations.inheritance.config import Config, kebab
from simulations.inheritance.grid import SHIPPED
from simulations.inheritance.jobs import small_paths
from simulations.inheritance.results import BEFORE, RETRAINED, Result, Row, Spent
from simulations.inheritance.summary import lines_of, markdown
from simulations.inheritance.tables import table


def config(folder: Path, name: str, **changes) -> str:
    """A file with `TINY` and some changes; a value of None is left out."""
    plain = {k: v for k, v in TINY.to_mapping().items() if v != Config().to_mapping()[k]}
    plain |= {kebab(k): v for k, v in changes.items()}
    path = folder / f"{name}.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items()))
    return str(path)


def run(*arguments: str) -> int:
    return command.main([*arguments])


def test_a_failing_config_stops_no_other(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    paths = [
        config(tmp_path, "typo", epohcs=3),
        config(tmp_path, "star", scenario="transfer", epochs=2, threshold=0.0),
        config(tmp_path, "wild", lr=1e9),
        config(tmp_path, "nodata", dataset="parquet"),
        str(tmp_path / "absent.toml"),
    ]
    assert run(*paths, "--out", str(out), "--no-retrain", "--methods", "ours") == 1
    printed = capsys.readouterr()
    for name, said in (
        ("typo", "unknown key 'epohcs' (did you mean 'epochs'?)"),
        ("wild", "the training of d by client1 diverged"),
        ("nodata", "needs a folder"),
        ("absent", "cannot read the config"),
    ):
        (line,) = [text for text in printed.err.splitlines() if text.startswith(f"failed: {name}: ")]
        assert said in line
        assert f"- {name}: " in printed.out
    # What is wrong with a config is said before the first of them is trained.
    assert printed.err.index("nodata: ") < printed.err.index("star: train: u0")
    assert "| star | ours | several | 5 |" in printed.out
    assert {p.name for p in (out / "star").iterdir()} >= {"result.json", "rows.csv", "table.md"}
    with (out / "star" / "rows.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [r["model"] for r in rows if r["method"] == "ours"] == ["u0", "u1", "u2", "u3", "u4"]
    with (out / "summary.csv").open() as f:
        (line,) = csv.DictReader(f)
    assert (line["experiment"], line["method"], line["ratio"], line["faster"]) == ("star", "ours", "", "")

    assert run(paths[1], "--out", str(out), "--no-retrain", "--methods", "ours", "--json") == 0
    printed = capsys.readouterr()
    assert "star: finished before" in printed.err
    plain = json.loads(printed.out)
    assert list(plain["experiments"]) == ["star"]
    assert plain["failed"] == {}
    assert plain["summary"][0]["forgotten_worst"] == 0

    assert run(paths[1], "--out", str(out), "--no-retrain", "--methods", "ours", "--again-methods") == 0
    printed = capsys.readouterr()
    assert "star: forget: ours" in printed.err
    assert "star: train" not in printed.err
    again = ["--again", "--set", "epochs=1", "seed=1"]
    assert run(paths[1], "--out", str(out), "--no-retrain", "--methods", "ours", *again[1:]) == 1
    assert "trained with epochs 2, seed 0; name another folder" in capsys.readouterr().err
    assert run(paths[1], "--out", str(out), "--no-retrain", "--methods", "ours", *again) == 0
    assert "star: train: u0 (1 of 5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a config file, or one of --list; --small runs all"),
        (["x.toml", "--set", "epochs"], "must look like epochs=3, got 'epochs'"),
        (["x.toml", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["a/x.toml", "b/x.toml"], "two configs are named 'x', and so would be their folders"),
        (["x.toml", "--methods", "ours"], "cannot read the config x.toml: No such file"),
        (["diamond-digits-mlp-small", "--methods", "our"], "unknown method 'our' (did you mean 'ours'?)"),
        (
            ["diamond-digit-mlp-small"],
            "config 'diamond-digit-mlp-small' (did you mean 'diamond-digits-mlp-small'?)",
        ),
        (["x.toml", "--data", "newgroups=/x"], "unknown data set 'newgroups' (did you mean 'newsgroups'?)"),
        (["diamond-digits-mlp-small", "--methods", "paper", "--commit"], "only 'ours' can forget for good"),
        (["diamond-digits-mlp-small", "--methods", ""], "methods names none; the known ones are ours, paper"),
        (["diamond-digits-mlp-small", "--set", "size=tiny"], "unknown size 'tiny'"),
        (["diamond-cifar100-vit"], "needs a folder with its files"),
    ],
)
def test_errors_of_the_command(arguments: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert run(*arguments, "--out", str(tmp_path)) == 1
    assert said in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_an_unknown_option_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as e:
        run("--agian")
    assert e.value.code == 2
    assert "--agian" in capsys.readouterr().err


def test_interrupting_says_how_to_go_on(tmp_path: Path, capsys, monkeypatch) -> None:
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_jobs", stop)
    assert run("diamond-digits-mlp-small", "--out", str(tmp_path)) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_list_names_configs_and_what_they_can_name(capsys) -> None:
    assert run("--list") == 0
    printed = capsys.readouterr().out
    assert "diamond-cifar100-vit " in printed
    assert "depth on scikit-learn's digits with one hidden layer: small enough for two cores." in printed
    assert "scenarios: diamond, several, parallel" in printed
    assert "methods: ours, paper" in printed


def test_folders_by_data_set(tmp_path: Path) -> None:
    folders = command._folders(["/pictures", "newsgroups=/texts", "/odd=name"])
    assert folders == {"": "/odd=name", "newsgroups": "/texts"}
    given = ["--data", "/c", "cifar100=/d"]
    paths = ["diamond-cifar100-vit", "diamond-cifar10-resnet18-small", "diamond-digits-mlp-small"]
    jobs = command._jobs(command._parser().parse_args([*paths, *given]))
    assert [job.config.data_root for job in jobs] == ["/d", "/c", ""]
    named = config(tmp_path, "named", dataset="parquet", data_root="/own")
    (job,) = command._jobs(command._parser().parse_args([named, *given]))
    assert job.config.data_root == "/own"


def test_small_leaves_out_what_has_no_data() -> None:
    small = [s.name for s in SHIPPED if s.small]
    for folders, lacking in (
        ({}, {"CIFAR-10": 11, "20 Newsgroups": 1}),
        ({"": "/c"}, {"20 Newsgroups": 1}),
        ({"newsgroups": "/n"}, {"CIFAR-10": 11}),
        ({"parquet": "/c", "newsgroups": "/n"}, {}),
    ):
        paths, left_out = small_paths(folders)
        assert all(any(title in option for title in lacking) for option in left_out)
        assert sum(len(names) for names in left_out.values()) == sum(lacking.values())
        assert sorted([p.stem for p in paths] + [n for names in left_out.values() for n in names]) == sorted(
            small
        )
        assert all(p.is_file() for p in paths)


# ---------------------------------------------------------------------- tables of known answers
def result(forget=(0,), **changes) -> Result:
    rows = (
        Row("init", BEFORE, None, None),
        Row("a", BEFORE, 0.9, 0.80),
        Row("b", BEFORE, 0.7, 0.60),
        Row("a", "ours", 0.0, 0.81),
        Row("b", "ours", 0.0, 0.595),
        Row("a", "paper", 0.5, 0.8),
        Row("b", "paper", 0.7, 0.4),
        Row("a", RETRAINED, 0.0, 0.79),
        Row("b", RETRAINED, 0.0, 0.59),
    )
    plain = {
        "config": {"model": "mlp", "size": "small"},
        "about": {"scenario": "Two models.", "data": "none"},
        "forget": forget,
        "affected": ("a", "b"),
        "rows": rows,
        "train": {"a": 10.0, "b": 20.0},
        "retrain": {"a": 10.0, "b": 30.0},
        "spent": {
            "ours": Spent(0.4, 1.0, 5, {"threshold": "3"}),
            "paper": Spent(2.0, 3.0, 4, {}, "no update suits"),
        },
        "passes": {"a": 10, "b": 5},
        "sizes": {"models": 3, "train-samples": 1000},
    }
    return Result(**{**plain, **changes})


def test_lines_of_known_answers() -> None:
    ours, paper, retrained = lines_of("x", result())
    assert (ours.kind, ours.models, ours.forgotten_mean, ours.forgotten_worst) == ("single", 2, 0, 0)
    assert (ours.before, ours.after) == (pytest.approx(70), pytest.approx(70.25))
    assert ours.change_worst == pytest.approx(-0.5)
    assert (ours.forgets, ours.keeps, ours.faster) == (True, True, True)
    assert ours.ratio == pytest.approx(100 * 0.4 / 40)
    assert ours.ratio_long == pytest.approx(100 * 0.4 / (10 * 10 + 30 * 20))
    assert paper.forgotten_mean == pytest.approx(60)
    assert paper.forgotten_worst == pytest.approx(70)
    assert paper.change_worst == pytest.approx(-20)
    assert (paper.forgets, paper.keeps, paper.faster) == (False, False, False)
    assert (retrained.method, retrained.seconds, retrained.ratio, retrained.ratio_long) == (
        RETRAINED,
        40,
        100,
        None,
    )


def test_aims_of_one_class_and_of_several() -> None:
    rows = tuple(
        Row(r.model, r.method, 0.004 if r.method == "ours" else r.forget, r.retained) for r in result().rows
    )
    assert lines_of("x", result(rows=rows))[0].forgets is False
    several = lines_of("x", result(forget=(0, 1), rows=rows))[0]
    assert (several.kind, several.forgets, several.keeps) == ("several", True, True)
    worse = tuple(
        Row(r.model, r.method, r.forget, r.retained - 0.006 * (r.method == "ours"))
        for r in rows
        if r.retained
    )
    assert lines_of("x", result(forget=(0, 1), rows=worse))[0].keeps is False


def test_without_retraining_there_is_no_ratio() -> None:
    lines = lines_of("x", result(retrain={}))
    assert [line.method for line in lines] == ["ours", "paper"]
    assert {(line.ratio, line.ratio_long, line.faster) for line in lines} == {(None, None, None)}


def test_the_summary_says_claims_refusals_and_failures() -> None:
    text = markdown({"x": result()}, {"y": "its data is missing"})
    assert (
        "0 % on a single class and 94.53 % on the others, 1.07 % and 84.77 % for several, and 99 % less"
        in text
    )
    assert (
        "| x | ours | single | 2 | 0.0 | 0.0 | 70.0 | 70.2 | -0.5 | 0.4 | 40 | 1 | 0.0571 | yes | yes | yes |"
        in text
    )
    assert "| x | paper (refused) | single |" in text
    assert "- x, paper: no update suits" in text
    assert "- y: its data is missing" in text
    assert "extrapolated, not measured" in text
    assert "|" not in markdown({}, {})


def test_the_table_of_known_answers() -> None:
    text = table("x", result())
    assert "3 models, 1,000 train samples." in text
    assert "| model | before | ours | paper | retrained | training | retraining |" in text
    assert "| init | - / - |  |  |  |  |  |" in text
    assert "| a | 90.0 / 80.0 | 0.0 / 81.0 | 50.0 / 80.0 | 0.0 / 79.0 | 10 | 10 |" in text
    assert "| paper | 2 | 4 | 3 | refused: no update suits |" in text
    assert "To be forgotten: class 0." in text
    assert "To be forgotten: classes 0, 1." in table("x", result(forget=(0, 1)))
