"""The comparison from end to end, in one process, on a few digits."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from compare_runs import SMALL, compare

from simulations.compare import __main__ as command
from simulations.compare.jobs import run_jobs
from simulations.compare.results import read_json, write_csv, write_json
from simulations.compare.setting import Setting, SettingError
from strategies.errors import UnsupportedError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return folder, compare(folder)


def test_every_strategy_is_beside_the_original_and_retraining(made) -> None:
    (comparison,) = made[1]
    assert list(comparison.strategies) == ["original", "retrain", "mask", "fine-tune"]
    assert comparison.mean("original", "forget-accuracy")[0] > 0.8
    assert comparison.mean("retrain", "forget-accuracy") == (0.0, 0.0)
    assert comparison.mean("mask", "held-forget-accuracy") == (0.0, 0.0)
    assert comparison.mean("original", "held-retain-accuracy")[0] > 0.8
    assert comparison.seeds == [0, 1]
    assert comparison.labels == list(range(10))


def test_gaps_are_to_the_model_retrained_with_the_same_seed(made) -> None:
    (comparison,) = made[1]
    rows = {(r.strategy, r.seed, r.key): r.value for r in comparison.rows}
    for seed in comparison.seeds:
        assert rows["retrain", seed, "tug-of-war"] == 1
        gap = rows["original", seed, "forget-accuracy"] - rows["retrain", seed, "forget-accuracy"]
        assert rows["original", seed, "gap-forget"] == pytest.approx(gap)
        assert rows["original", seed, "tug-of-war"] < 0.2


def test_costs_are_of_the_strategy_and_not_of_measuring(made) -> None:
    (comparison,) = made[1]
    assert comparison.mean("mask", "rounds") == (0, 0)
    assert comparison.mean("mask", "bytes-down") == (0, 0)
    assert comparison.mean("retrain", "rounds") == (SMALL.rounds, 0)
    assert comparison.mean("fine-tune", "rounds") == (2, 0)
    assert comparison.mean("retrain", "client-seconds")[0] > 0


def test_a_change_of_every_checkpoint_is_measured_on_earlier_ones(made) -> None:
    (comparison,) = made[1]
    assert comparison.mean("mask", "checkpoints-forget") == (0, 0)
    assert comparison.mean("fine-tune", "checkpoints-forget") is None
    assert "current model alone" in comparison.why("fine-tune", "checkpoints-forget")


def test_the_graph_says_what_inherits_from_the_forgotten_data(made) -> None:
    (comparison,) = made[1]
    nodes = comparison.graph.nodes
    assert len(nodes) == 1 + SMALL.rounds * (SMALL.clients + 1)
    assert not nodes["r0000-initial"][3]
    assert nodes[f"r{SMALL.rounds:04d}-global"][3]
    assert ("r0000-initial", "r0001-client-0") in comparison.graph.edges


def test_what_is_there_is_not_made_again(made) -> None:
    folder, before = made
    models = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    again = compare(folder)
    assert again == before
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == models


def test_what_was_deleted_is_made_again_the_same(made) -> None:
    folder, before = made
    model = folder / "digits-class" / "seed-0" / "fine-tune.safetensors"
    old = model.read_bytes()
    for path in model.parent.glob("fine-tune.*"):
        path.unlink()
    (again,) = compare(folder)
    assert model.read_bytes() == old
    assert again.values("fine-tune", "forget-loss") == before[0].values("fine-tune", "forget-loss")


def test_files_of_another_federation_are_an_error(made) -> None:
    with pytest.raises(SettingError, match="was trained otherwise"):
        compare(made[0], rounds=3)


def test_results_of_another_request_are_an_error(made) -> None:
    with pytest.raises(SettingError, match="holds results of another request"):
        compare(made[0], forget_classes="5")


def test_a_refusal_on_one_seed_is_no_value_of_the_strategy(made, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    path = folder / "digits-class" / "seed-1" / "mask.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "refused": "too like"}))
    (comparison,) = compare(folder)
    assert len(comparison.values("mask", "held-retain-accuracy")) == 1
    assert comparison.why("mask", "held-retain-accuracy") == "refused: too like"
    assert "mask" not in comparison.refused


def test_results_are_read_as_they_were_written(made, tmp_path) -> None:
    write_json(made[1], tmp_path / "results.json")
    assert read_json(tmp_path / "results.json") == made[1]
    write_csv(made[1], tmp_path / "results.csv")
    with open(tmp_path / "results.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(made[1][0].rows)
    assert {r["why"] for r in rows if not r["value"]} - {""}


def test_an_unsupported_target_is_a_dash_with_its_reason(tmp_path) -> None:
    (comparison,) = compare(tmp_path, name="digits-client", strategies=["mask"], seeds=[0])
    assert comparison.mean("mask", "forget-accuracy") is None
    assert comparison.why("mask", "forget-accuracy") == "it cannot forget a client, only classes"


def test_nothing_is_trained_when_no_strategy_can_serve_the_request(tmp_path) -> None:
    setting = {"digits-client": Setting.named("digits-client", clients=3)}
    with pytest.raises(UnsupportedError, match="mask: it cannot forget a client, only classes"):
        run_jobs(setting, ["mask"], ["accuracy"], [0], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits-clas"], "did you mean 'digits-class'"),
        (["cifar10-class"], "needs --data"),
        (["--set", "round=3"], "--set takes KEY=VALUE"),
        (["--set", "rounds=many"], "takes a value of type int"),
        (["--set", "clients=0"], "clients must be at least 1, got 0"),
        (["--set", "forget-classes=x"], "forget-classes must look like"),
        (["--set", "forget-clients=9"], "there is no client '9'"),
        (["--set", "forget-classes=42"], "there is no class 42: they are 0 to 9"),
    ],
)
def test_a_bad_command_line_is_an_error_before_anything_is_made(arguments, said, tmp_path, capsys) -> None:
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_everything(tmp_path, capsys) -> None:
    options = ["--jobs", "1", "--seeds", "0", "--metrics", "accuracy", "--strategies", "mask", "--json"]
    small = ["--set", "rounds=2", "clients=2", "epochs=1"]
    code = command.main(["digits-class", "--out", str(tmp_path), *options, *small])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["name"] == "digits-class"
    assert {"results.json", "results.csv", "tables.md", "report.html"} <= {p.name for p in tmp_path.iterdir()}
