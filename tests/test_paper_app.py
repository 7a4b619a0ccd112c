"""The paper's scenarios as a Flower app, its server and clients in this process."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases_cli import run_json
from flwr.app import Context, Message, RecordDict
from grid import LocalGrid, Tamper

from fl_unlearn.model_graph import ModelGraph
from simulations.compare import flower, messages
from simulations.compare.local import LocalFederation
from simulations.inheritance.__main__ import main
from simulations.inheritance.commit import commit
from simulations.inheritance.config import Config, ConfigError
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.flower import RUN_KEYS, read_run
from simulations.inheritance.results import Result
from simulations.inheritance.world import World
from simulations.local_flower import RunFailedError
from simulations.paper.fl_unlearn_paper import client_app, server_app
from strategies.errors import StrategyError

APP = Path(server_app.__file__).parents[1]
SMALL = {"model": "mlp", "epochs": 2}
PLAIN = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def world_and_federation() -> tuple[World, LocalFederation]:
    """The same in one process."""
    world = World(Config(**SMALL))
    return world, LocalFederation(list(world.clients.values()), world.request)


def local(out: Path, retrain: bool = True) -> None:
    Experiment(*world_and_federation(), out, lambda text: None).run(retrain=retrain)


def run(out: Path, nodes: int = 4, tamper: Tamper | None = None, **changes) -> LocalGrid:
    changes = {key.replace("_", "-"): value for key, value in changes.items()}
    config = {**PLAIN, **SMALL, "out-dir": str(out), **changes}
    # Node ids are not in the order of the owners, whose names are not in the order of their numbers.
    grid = LocalGrid({900 - i: client_app.app for i in range(nodes)}, tamper, **config)
    server_app.app(grid, Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config))
    return grid


@contextmanager
def models(out: Path, folder: str = "models") -> Iterator[ModelGraph]:
    with ModelGraph(out / folder) as graph:
        yield graph


def states(out: Path, folder: str) -> dict[str, dict[str, torch.Tensor]]:
    with models(out, folder) as graph:
        return {node.name: graph.state(node.name) for node in graph.umig.nodes()}


def assert_same_models(one: Path, other: Path, folder: str) -> None:
    a, b = states(one, folder), states(other, folder)
    assert a.keys() == b.keys()
    for name, state in a.items():
        assert all(torch.equal(t, b[name][n]) for n, t in state.items()), name


def result(out: Path) -> Result:
    found = Result.load(out)
    assert found is not None
    return found


def assert_same_results(one: Path, other: Path) -> None:
    a, b = result(one), result(other)
    assert (a.rows, a.affected, a.config, a.forget) == (b.rows, b.affected, b.config, b.forget)
    for name, spent in a.spent.items():
        theirs = b.spent[name]
        assert (spent.rounds, spent.facts, spent.refused) == (theirs.rounds, theirs.facts, theirs.refused)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("app")
    run(out)
    return out


def test_both_engines_give_the_same_bits(made: Path, tmp_path: Path) -> None:
    local(tmp_path)
    assert_same_results(made, tmp_path)
    for folder in ("models", "retrained"):
        assert_same_models(made, tmp_path, folder)


def test_what_one_process_has_trained_is_gone_on_from_and_the_other_way_round(
    made: Path, tmp_path: Path
) -> None:
    local(tmp_path, retrain=False)
    asked = []

    def tamper(request: Message, reply: Message) -> Message:
        asked.append(messages.read_task(request.content)[0])
        return reply

    run(tmp_path, tamper=tamper)
    assert asked.count("inheritance.train") == len(result(tmp_path).affected), (
        "only retraining was left to do"
    )
    assert_same_results(made, tmp_path)


def test_every_value_of_a_config_is_a_key_of_the_run_config_with_the_same_default() -> None:
    assert {k: v for k, v in PLAIN.items() if k not in RUN_KEYS} == Config().to_mapping()
    assert set(RUN_KEYS) == PLAIN.keys() - Config().to_mapping().keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epohcs": 3}, "unknown key 'epohcs'.*'epochs'.*scenario, .*seed"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": "fast"}, "lr must be of type float, got 'fast'"),
        ({"methods": "ours,papre"}, "unknown method 'papre'.*'paper'"),
        ({"methods": "paper", "commit": True}, "commit=true needs the method 'ours'"),
        ({"commit": "yes"}, "commit must be true or false, got 'yes'"),
        ({"model": "mpl"}, "unknown model 'mpl'.*'mlp'"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, got 0"),
    ],
)
def test_a_bad_run_config_fails_before_anything_is_sent(changes, said: str, tmp_path: Path) -> None:
    sent = []
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "out", tamper=lambda request, reply: sent.append(request), **changes)
    assert not sent
    assert not (tmp_path / "out").exists()


def test_another_number_of_nodes_than_owners_fails_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(flower, "PATIENCE", 0.0)
    for nodes, said in (
        (2, "2 of 4 clients are connected"),
        (5, "the run has 5 nodes, the scenario 'diamond' 4 owners"),
    ):
        with pytest.raises(StrategyError, match=f"{said}.*num-supernodes=4"):
            run(tmp_path / "out", nodes)
    assert not (tmp_path / "out").exists()


def test_an_out_dir_of_ones_own_or_one_that_the_same_models_share(tmp_path: Path) -> None:
    def out(**changes) -> Path:
        return read_run({**PLAIN, **SMALL, **changes}).out

    assert out(**{"out-dir": "~/x"}) == Path.home() / "x"
    assert out(**{"out-dir": "x"}) == Path.cwd() / "x"
    assert out().parent == Path.cwd() / "outputs" / "paper"
    assert out() == out(methods="ours") != out(epochs=3)


@pytest.fixture(scope="module")
def committed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("committed") / "out"
    shutil.copytree(made, out)
    run(out, commit=True)
    return out


def test_forgetting_for_good_is_what_was_measured(made: Path, committed: Path, tmp_path: Path) -> None:
    assert (committed / "result.json").read_bytes() == (made / "result.json").read_bytes(), "nothing was run"
    shutil.copytree(made, tmp_path / "local")
    world, federation = world_and_federation()
    affected = world.scenario.affected()
    assert commit(world, tmp_path / "local") == len(affected)
    assert commit(world, tmp_path / "local") == 0
    assert_same_models(committed, tmp_path / "local", "models")

    before, after = states(made, "models"), states(committed, "models")
    for name, state in after.items():
        changed = not all(torch.equal(t, before[name][n]) for n, t in state.items())
        assert changed == (name in affected)
    with models(committed) as graph:
        again = Experiment(world, federation, tmp_path / "again").measure(graph, {})
    measured = [r for r in result(committed).rows if r.method == "ours"]
    assert [(r.forget, r.retained) for r in again if r.model in affected] == [
        (r.forget, r.retained) for r in measured
    ]
    assert {r.forget for r in measured} == {0.0}
    for what in ("checkpoints", "audit"):
        assert run_json(what, "verify", committed / "models")["problems"] == []


def test_models_that_have_forgotten_for_good_are_not_measured_again(committed: Path) -> None:
    kept = (committed / "result.json").read_bytes()
    run(committed, commit=True)  # finished before, forgotten before
    with pytest.raises(ConfigError, match=r"have forgotten for good.*result\.json.*name another folder"):
        run(committed, threshold=3)
    assert (committed / "result.json").read_bytes() == kept
    with models(committed) as graph:
        assert len(graph.store.operations.all()) == 1


def test_only_what_was_measured_is_committed(made: Path, tmp_path: Path) -> None:
    world, federation = world_and_federation()
    shutil.copytree(made, tmp_path / "other")
    with pytest.raises(ConfigError, match="'ours' was not measured with this config"):
        commit(World(replace(world.config, threshold=3.0)), tmp_path / "other")
    for changes, said in (
        ({"methods": "paper"}, "'ours' was not measured"),
        ({"threshold": 1e9, "methods": "ours"}, "was refused"),
    ):
        changed = World(replace(world.config, **changes))
        Experiment(changed, federation, tmp_path / "other", lambda text: None).run(retrain=False)
        with pytest.raises(ConfigError, match=said):
            commit(changed, tmp_path / "other")
    with pytest.raises(ConfigError, match="'ours' was not measured"):
        commit(world, tmp_path / "nothing")
    shutil.copytree(made, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "methods")
    with pytest.raises(ConfigError, match=r"is no longer in .*methods; run it again"):
        commit(world, tmp_path / "lost")
    assert not (tmp_path / "nothing").exists()
    for folder in ("other", "lost"):
        with models(tmp_path / folder) as graph:
            assert not graph.store.operations.all()


def test_the_command_commits_and_refuses_what_would_measure_it_again(
    made: Path, tmp_path: Path, capsys
) -> None:
    config = tmp_path / "diamond.toml"
    config.write_text("model = 'mlp'\nepochs = 2\n")
    shutil.copytree(made, tmp_path / "out" / "diamond")
    command = [str(config), "--out", str(tmp_path / "out")]
    for said in ("4 models have forgotten for good", "all models had already forgotten for good"):
        assert main([*command, "--commit"]) == 0
        assert f"diamond: {said}" in capsys.readouterr().err
    for more in (["--again-methods"], ["--set", "threshold=3"]):
        assert main([*command, *more]) == 1
        assert "have forgotten for good" in capsys.readouterr().err
    assert_same_results(made, tmp_path / "out" / "diamond")


def test_the_command_runs_the_app_with_a_node_for_each_owner(
    made: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    class Engine:
        def __init__(self, nodes: int) -> None:
            self.nodes = nodes

        def __enter__(self) -> Engine:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def run(self, app: Path, config: dict, timeout: float) -> None:
            assert app == APP
            assert config.keys() <= PLAIN.keys()
            run(tmp_path / "elsewhere", self.nodes, **config)

    monkeypatch.setattr("simulations.inheritance.flower.LocalFlower", Engine)
    config = tmp_path / "diamond.toml"
    config.write_text("model = 'mlp'\nepochs = 2\n")
    command = [str(config), "--flower", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert_same_results(made, tmp_path / "out" / "diamond")
    monkeypatch.setattr(Engine, "run", lambda *args, **kwargs: pytest.fail("it is finished"))
    assert main(command) == 0

    def ended(*args: object, **kwargs: object) -> None:
        raise RunFailedError("the run ended as finished:failed")

    monkeypatch.setattr(Engine, "run", ended)
    assert main([*command, "--set", "epochs=3", "--again"]) == 1
    assert "failed: diamond: the run ended as finished:failed" in capsys.readouterr().err
