"""The comparison as a Flower app, its server and clients in this process."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from compare_runs import but_for_time
from flwr.app import Context, RecordDict
from grid import LocalGrid, Tamper

from simulations.compare import flower
from simulations.compare.app.fl_unlearn_compare import client_app, server_app
from simulations.compare.jobs import run_jobs
from simulations.compare.results import Comparison, read_json
from simulations.compare.run_config import read_setting
from simulations.compare.setting import Setting, SettingError
from simulations.compare.write import FILES
from strategies.errors import StrategyError, UnsupportedError

APP = Path(server_app.__file__).parents[1]


def run_config(**changes) -> dict:
    """The app's run config, as `flwr run` has it, for a small federation."""
    plain = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    small = {"clients": 3, "rounds": 2, "epochs": 1, "metrics": "accuracy", "strategies": "mask,fine-tune"}
    changes = {key.replace("_", "-"): value for key, value in changes.items()}
    assert changes.keys() <= plain.keys()
    return {**plain, **small, **changes}


def run(nodes: int = 3, tamper: Tamper | None = None, **changes) -> LocalGrid:
    config = run_config(**changes)
    grid = LocalGrid({500 + i: client_app.app for i in range(nodes)}, tamper, **config)
    context = Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    server_app.app(grid, context)
    return grid


def result(folder: Path) -> Comparison:
    (comparison,) = read_json(folder / "results.json")
    return comparison


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalGrid]:
    folder = tmp_path_factory.mktemp("app")
    return folder, run(out_dir=str(folder))


def test_the_app_gives_what_one_process_gives_from_the_same_trained_federation(
    made: tuple[Path, LocalGrid], tmp_path: Path
) -> None:
    folder, seed = made[0], Path("digits-class") / "seed-0"
    shutil.copytree(folder / seed / "store", tmp_path / seed / "store")
    setting = Setting.named("digits-class", clients=3, rounds=2, epochs=1)
    local = run_jobs({"digits-class": setting}, ["mask", "fine-tune"], ["accuracy"], [0], tmp_path)
    assert but_for_time(result(folder)) == but_for_time(local[0])
    for name in ("original", "retrain", "mask", "fine-tune"):
        model = seed / f"{name}.safetensors"
        assert (folder / model).read_bytes() == (tmp_path / model).read_bytes()
    assert {p.name for p in folder.iterdir() if p.is_file()} == set(FILES)
    assert result(folder).mean("retrain", "client-seconds")[0] > 0
    assert result(folder).mean("original", "forget-accuracy")[0] > 0.5
    assert result(folder).mean("retrain", "forget-accuracy") == (0, 0)


def test_what_was_trained_and_made_in_one_process_is_gone_on_from(tmp_path: Path) -> None:
    setting = Setting.named("digits-class", clients=3, rounds=2, epochs=1)
    (local,) = run_jobs({"digits-class": setting}, ["mask"], ["accuracy"], [0], tmp_path)
    grid = run(out_dir=str(tmp_path))
    assert {kind for kind, _ in grid.log} == {"query.compare_task"}, "nothing was trained again"
    both = result(tmp_path)
    assert list(both.strategies) == ["original", "retrain", "mask", "fine-tune"]
    for name in ("original", "retrain", "mask"):
        assert [r for r in both.rows if r.strategy == name] == [r for r in local.rows if r.strategy == name]


def test_training_is_recorded_by_the_plug_in(made: tuple[Path, LocalGrid]) -> None:
    log = made[1].log
    assert sum(kind == "train" for kind, _ in log) == 2 * 3
    assert sum(kind == "query.unlearn_identity" for kind, _ in log) == 3
    graph = result(made[0]).graph
    assert graph.nodes["r0002-client-1"] == ("client-update", 2, "1", True)
    assert len(graph.nodes) == 1 + 2 * (3 + 1)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"setting": "digits-clas"}, SettingError, "did you mean 'digits-class'"),
        ({"strategies": "mask,retrian"}, StrategyError, "did you mean 'retrain'"),
        ({"metrics": "accuracy,zrff"}, StrategyError, "unknown metric 'zrff'"),
        (
            {"setting": "digits-client", "strategies": "mask"},
            UnsupportedError,
            "mask: it cannot forget a client",
        ),
        ({"lr": "fast"}, SettingError, "lr must be a number, got 'fast'"),
        ({"rounds": 2.5}, SettingError, "rounds must be a whole number, got 2.5"),
        ({"rounds": 0}, SettingError, "rounds must be at least 1, got 0"),
        ({"forget_clients": 9}, SettingError, "there is no client '9'"),
        ({"forget_classes": "none"}, SettingError, "name something to forget"),
        ({"dataset": "digit"}, ValueError, "digit"),
    ],
)
def test_a_bad_run_config_fails_before_anything_is_sent(changes, error, said: str, tmp_path: Path) -> None:
    sent = []
    with pytest.raises(error, match=said):
        run(tamper=lambda request, reply: sent.append(request), out_dir=str(tmp_path / "out"), **changes)
    assert not sent
    assert not (tmp_path / "out").exists()


def test_another_number_of_nodes_than_clients_fails_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(flower, "PATIENCE", 0.0)
    for nodes, said in (
        (2, "2 of 3 clients are connected"),
        (4, "the run has 4 nodes, the setting 3 clients"),
    ):
        with pytest.raises(StrategyError, match=f"{said}.*num-supernodes=3"):
            run(nodes, out_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_empty_value_is_the_presets_and_none_is_an_empty_text() -> None:
    plain = {f.name.replace("_", "-"): "" for f in fields(Setting)}
    assert read_setting({**plain, "setting": "cifar10-client"}) == Setting.named("cifar10-client")
    changed = {"setting": "digits-classes", "forget-clients": 2, "alpha": 1, "pictures": 100.0}
    assert read_setting({**plain, **changed}) == Setting.named(
        "digits-classes", forget_clients="2", alpha=1.0, pictures=100
    )
    changed = {"setting": "digits-client", "forget-classes": 3, "forget-clients": "none"}
    assert read_setting({**plain, **changed}).request({}).classes == (3,)
    assert read_setting({**plain, **changed}).request({}).clients == ()


def test_every_value_of_a_setting_is_a_key_of_the_run_config() -> None:
    own = {"setting", "strategies", "metrics", "seed", "out-dir", "timeout"}
    assert run_config().keys() == own | {f.name.replace("_", "-") for f in fields(Setting)}
