"""Experiments from end to end on a few digits: what is measured is right, and nothing is made twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from inheritance_cases import TINY, Stopped, Stopping, experiment, states
from references import reference_fisher
from references_update import dampened

from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import ClassScores
from simulations import models
from simulations.inheritance.config import Config, ConfigError
from simulations.inheritance.experiment import TrainingError, passes_of, row_of
from simulations.inheritance.folder import clear, finished
from simulations.inheritance.progress import Progress, duration
from simulations.inheritance.results import BEFORE, RETRAINED, Result, Row
from simulations.inheritance.tasks import train_settings
from simulations.inheritance.world import World
from strategies import tasks

AFFECTED = ("r1", "r2", "r3", "r4")
HEAD = ["3.weight", "3.bias"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inheritance")
    return folder, experiment(folder).run()


def test_what_an_experiment_finds(made) -> None:
    folder, result = made
    assert result.affected == AFFECTED
    assert result.forget == (0,)
    assert [r.model for r in result.rows if r.method == "ours"] == list(AFFECTED)
    assert result.models == ["init", "d", "s", *AFFECTED]
    assert result.row("init", BEFORE) == Row("init", BEFORE, None, None)
    assert result.row("d", BEFORE).forget is None
    for name in AFFECTED:
        assert result.row(name, BEFORE).forget > 0.7
        assert result.row(name, "ours").forget == 0
        assert result.row(name, RETRAINED).forget == 0
        assert result.row(name, "ours").retained > 0.5
    assert set(result.train) == {"d", "s", *AFFECTED}
    assert set(result.retrain) == set(AFFECTED)
    assert result.passes == {"d": 8, "s": 8, **dict.fromkeys(AFFECTED, 3)}
    assert result.sizes["train-samples"] == 400
    assert result.sizes["parameters"] == 64 * 64 + 64 + 640 + 10
    assert Result.load(folder) == result


def test_accuracies_are_those_of_a_loop_over_test_samples(made) -> None:
    folder, result = made
    world = World(TINY)
    model = world.build_model()
    model.load_state_dict(states(folder / "models")["r3"])
    right = {True: 0, False: 0}
    seen = {True: 0, False: 0}
    for x, y in world.bundle.test.samples:
        seen[int(y) == 0] += 1
        right[int(y) == 0] += int(model(x[None]).argmax()) == int(y)
    row = result.row("r3", BEFORE)
    assert (row.forget, row.retained) == (right[True] / seen[True], right[False] / seen[False])


def test_only_labels_that_a_model_knows_are_measured(tmp_path: Path) -> None:
    result = experiment(tmp_path, scenario="incremental", methods="ours").run(retrain=False)
    known = World(TINY).bundle.test
    world = experiment(tmp_path, scenario="incremental").world
    model = world.build_model()
    model.load_state_dict(states(tmp_path / "models")["u0"])
    labels = sorted(world.scenario.known()["u0"] - {0})
    assert labels == list(range(1, 7))
    hits = [int(model(x[None]).argmax()) == int(y) for x, y in known.samples if int(y) in labels]
    assert result.row("u0", BEFORE).retained == sum(hits) / len(hits)
    assert result.retrain == {}
    assert result.row("u0", RETRAINED) is None


def test_row_of_known_answers() -> None:
    scores = ClassScores({0: 1, 1: 2, 2: 9}, {0: 4, 1: 8, 2: 10}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert row_of("m", "x", scores, frozenset({0, 1, 2}), (0, 1)) == Row("m", "x", 3 / 12, 9 / 10)
    assert row_of("m", "x", scores, frozenset({1, 2}), (0,)) == Row("m", "x", None, 11 / 18)
    assert row_of("m", "x", scores, frozenset({0}), (0,)) == Row("m", "x", 1 / 4, None)
    assert row_of("m", "x", ClassScores(), frozenset({0, 1}), (0,)) == Row("m", "x", None, None)


def test_methods_change_no_stored_model(tmp_path: Path) -> None:
    made = experiment(tmp_path)
    made.train()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    assert before
    result = made.run(retrain=False)
    assert result.row("r4", "ours").forget < result.row("r4", BEFORE).forget
    assert {p: p.read_bytes() for p in before} == before


def test_the_papers_method_is_the_rule_of_its_code(made) -> None:
    """By hand for r4: forget Fisher on the root r1, against r4's own reference over its owner's data."""
    folder, _ = made
    kept, world = states(folder / "models"), World(TINY)
    with ModelGraph(folder / "models") as graph:
        applied = experiment(folder).forget("paper", graph)
    root, own = world.clients["client3"], world.clients["client4"]

    def fisher(client, name: str, part: str) -> dict:
        model = client.model(kept[name])
        sums, counts = reference_fisher(model, client.batches(part, size=32), "batch", HEAD, keep_classes=[])
        return {n: t / counts[-1] for n, t in sums[-1].items()}

    wanted = dampened(
        kept["r4"], fisher(root, "r1", "forget"), fisher(own, "r4", "train"), TINY.paper_threshold, 1.0
    )
    with ModelGraph(folder / "models") as graph:
        after = applied.state(graph, "r4")
    assert applied.updates["r4"].selected > 0
    for name, tensor in wanted.items():
        torch.testing.assert_close(after[name].double(), tensor.double(), rtol=1e-3, atol=1e-6)
    assert all(torch.equal(after[n], kept["r4"][n]) for n in kept["r4"] if n not in HEAD)


# ---------------------------------------------------------------------- resuming
def plain(result: Result) -> tuple:
    """All of a result but times."""
    facts = {name: (s.rounds, s.facts, s.refused) for name, s in result.spent.items()}
    return result.config, result.forget, result.affected, result.rows, facts


# Questions 0-5 train, 6-9 retrain, 10-16 are ours, 17-22 the paper's.
@pytest.mark.parametrize("at", [3, 7, 12, 19])
def test_a_killed_run_goes_on_and_ends_the_same(at: int, made, tmp_path: Path) -> None:
    folder, whole = made
    killed = experiment(tmp_path, at)
    with pytest.raises(Stopped):
        killed.run()
    again = experiment(tmp_path)
    result = again.run()
    assert plain(result) == plain(whole)
    trained = killed.federation.asked + again.federation.asked
    assert trained.count("inheritance.train") == 10
    for graph in ("models", "retrained"):
        one, other = states(folder / graph), states(tmp_path / graph)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[m][n], other[m][n]) for m in one for n in one[m])


def test_a_run_killed_while_measuring_measures_only_the_rest(made, tmp_path: Path, monkeypatch) -> None:
    folder, whole = made
    shutil.copytree(folder, tmp_path / "x")
    rows = json.loads((folder / "measured.json").read_text())
    (tmp_path / "x" / "measured.json").write_text(json.dumps(rows[:4]))
    (tmp_path / "x" / "result.json").unlink()
    again = experiment(tmp_path / "x")
    scored = []
    own = again._scored
    monkeypatch.setattr(again, "_scored", lambda name, *rest: scored.append(name) or own(name, *rest))
    assert again.run() == whole
    assert again.federation.asked == []
    assert scored[0] == "r1"  # its row "before" was there, those of the methods were not
    assert scored == [*AFFECTED, *AFFECTED]


def test_what_is_finished_is_found_and_anything_else_is_not(made) -> None:
    folder, result = made
    assert finished(folder, TINY) == result
    assert finished(folder, Config.from_mapping({**TINY.to_mapping(), "data-root": "/x"})) == result
    for changes in ({"threshold": 4.0}, {"seed": 1}, {"methods": "ours"}):
        assert finished(folder, Config.from_mapping({**TINY.to_mapping(), **changes})) is None
    assert finished(folder / "no", TINY) is None


def test_a_result_that_is_damaged_or_without_retraining_is_not_finished(made, tmp_path: Path) -> None:
    folder, _ = made
    content = json.loads((folder / "result.json").read_text())
    for text in ("{", "{}", json.dumps({**content, "retrain": {}})):
        (tmp_path / "result.json").write_text(text)
        assert finished(tmp_path, TINY) is None
    assert finished(tmp_path, TINY, retrain=False) is not None


def test_other_thresholds_only_redo_the_methods(made, tmp_path: Path) -> None:
    folder, whole = made
    shutil.copytree(folder, tmp_path / "x")
    again = experiment(tmp_path / "x", threshold=1e6, methods="ours")
    result = again.run()
    assert "inheritance.train" not in again.federation.asked
    assert "fisher" in again.federation.asked
    for method in (BEFORE, RETRAINED):
        assert [r for r in result.rows if r.method == method] == [r for r in whole.rows if r.method == method]
    assert result.spent["ours"].refused
    assert [result.row(m, "ours").forget for m in AFFECTED] == [whole.row(m, BEFORE).forget for m in AFFECTED]
    back = experiment(tmp_path / "x").run()
    assert plain(back) == plain(whole)


def test_a_damaged_update_is_made_again(made, tmp_path: Path) -> None:
    folder, whole = made
    shutil.copytree(folder, tmp_path / "x")
    for path in (tmp_path / "x" / "methods").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    again = experiment(tmp_path / "x")
    assert plain(again.run()) == plain(whole)
    assert set(again.federation.asked) >= {"fisher", "inheritance.counts"}


def test_a_folder_of_another_experiment(made) -> None:
    folder, _ = made
    with pytest.raises(
        ConfigError, match="holds another experiment, trained with seed 0; name another folder"
    ):
        experiment(folder, seed=1)
    with pytest.raises(ConfigError, match=r"trained with epochs 3, lr 0\.1"):
        experiment(folder, epochs=4, lr=0.2)


def test_a_folder_in_which_nothing_was_trained_is_anybodys(tmp_path: Path) -> None:
    experiment(tmp_path, lr=0.2)
    experiment(tmp_path, at=1)
    with pytest.raises(Stopped):
        experiment(tmp_path, at=1).run()
    with pytest.raises(ConfigError, match=r"trained with lr 0\.1"):
        experiment(tmp_path, lr=0.2)


def test_clearing_removes_what_was_made_and_nothing_else(made, tmp_path: Path) -> None:
    folder, _ = made
    shutil.copytree(folder, tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("mine")
    (tmp_path / "x" / "points.json").write_text("{}")  # what figures tried
    clear(tmp_path / "x", trained=False)
    assert finished(tmp_path / "x", TINY) is None
    assert (tmp_path / "x" / "models").is_dir()
    assert not (tmp_path / "x" / "points.json").exists()
    clear(tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["notes.txt"]


# ---------------------------------------------------------------------- training
def test_a_training_that_diverges_names_the_model(tmp_path: Path) -> None:
    diverging = experiment(tmp_path, lr=1e9)
    with pytest.raises(
        TrainingError, match=r"the training of d by client1 diverged: .*lower lr, which is 1e\+09"
    ):
        diverging.run()
    assert set(states(tmp_path / "models")) == {"init"}


def test_passes_of_known_answers() -> None:
    plan = (
        PlannedModel("init"),
        PlannedModel("a", ["init"], "x"),
        PlannedModel("b", ["init"]),
        PlannedModel("c", ["b"], "x"),
        PlannedModel("d", ["a", "b"]),
        PlannedModel("e", ["d"], "y"),
        PlannedModel("f", [], "y"),
    )
    assert passes_of(plan, Config(epochs=2, first_epochs=7)) == {"a": 7, "c": 7, "e": 2, "f": 7}
    assert passes_of(plan, Config(epochs=2)) == {"a": 2, "c": 2, "e": 2, "f": 2}


def trained(world: World, trains: str, **changes) -> tuple[dict, tasks.Answer]:
    start = world.initial_state()
    model = PlannedModel("m", [], "client3", trains)
    settings = {**train_settings(world.config, model, "train", 0, 2), **changes}
    return start, tasks.run("inheritance.train", world.clients["client3"], {"model": start}, settings)


def test_only_the_head_learns_and_statistics_stay(monkeypatch) -> None:
    def normed(inputs, classes, small):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, classes)
        )

    monkeypatch.setitem(models.MODELS, "mlp", normed)
    world = World(TINY)
    start, answer = trained(world, "head")
    changed = {n for n, t in answer.tensors["model"].items() if not torch.equal(t, start[n])}
    assert changed == {"3.weight", "3.bias"}
    # A batch of a single sample is left out: batch normalisation would refuse it.
    count = world.clients["client3"].count("train")
    start, answer = trained(world, "all", **{"batch-size": count - 1})
    changed = {n for n, t in answer.tensors["model"].items() if not torch.equal(t, start[n])}
    assert changed == set(start)
    assert answer.tensors["model"]["2.num_batches_tracked"] == 2


def test_the_learning_rate_falls_at_milestones() -> None:
    world = World(TINY)
    _, whole = trained(world, "all")
    _, stopped = trained(world, "all", milestones=[1], gamma=1e-12)
    _, once = trained(world, "all", epochs=1)
    for name, tensor in once.tensors["model"].items():
        torch.testing.assert_close(stopped.tensors["model"][name], tensor)
        assert not torch.equal(whole.tensors["model"][name], tensor)


def test_adam_is_another_optimizer() -> None:
    _, sgd = trained(World(TINY), "all")
    _, adam = trained(World(TINY), "all", optimizer="adam", lr=0.01)
    assert adam.numbers["loss"] != sgd.numbers["loss"]
    assert adam.numbers["loss"] < 2


def test_two_worlds_of_a_config_are_the_same() -> None:
    one, other = World(TINY), World(TINY)
    assert all(torch.equal(one.initial_state()[n], t) for n, t in other.initial_state().items())
    for name, client in one.clients.items():
        assert torch.equal(client.labels, other.clients[name].labels)
    assert Stopping(one).clients == Stopping(other).clients


# ---------------------------------------------------------------------- progress
def test_progress_says_how_long_the_rest_may_take() -> None:
    told, times = [], iter([100.0, 110.0, 110.5, 130.0])
    progress = Progress(
        "train", {"a": 1.0, "b": 1.0, "c": 0.0, "d": 2.0, "e": 4.0}, told.append, lambda: next(times)
    )
    progress.skip("b")
    for name in ("a", "c", "d", "e"):
        progress.begin(name)
    assert told == [
        "train: a (1 of 5)",
        "train: c (3 of 5), 10 s so far, about 1 min 0 s to go",
        "train: e (5 of 5), 30 s so far, about 40 s to go",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_of_known_answers(seconds: float, text: str) -> None:
    assert duration(seconds) == text
