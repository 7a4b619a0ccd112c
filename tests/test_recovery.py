"""Killed anywhere in training or in a request, and started again, a program ends as if it had not been."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import restarts
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, Result
from restarts import (
    OwnLoop,
    after_decision,
    after_phase,
    assert_left_the_same,
    before,
    check_sound,
    dying_grid,
    killed,
    left_behind,
    program,
)

from fl_unlearn.flower import UnlearningStrategy, records, recovery
from fl_unlearn.operations import OperationLedger
from fl_unlearn.request_log import RequestLog
from fl_unlearn.run_log import RunLog
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import (
    CorruptCheckpointError,
    ModelMismatchError,
)

MESSAGES = 65  # of the whole program; 20 a round and 20 a request, and 5 to learn who is who
THREE = restarts.THREE


def start() -> ArrayRecord:
    return ArrayRecord(fed.build_model().state_dict())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    known: dict[Any, dict[str, Any]] = {}

    def get(name: str, keep: KeepPolicy | None = None) -> dict[str, Any]:
        if (name, keep) not in known:
            network = fed.grid()
            strategy, result = program(tmp_path_factory.mktemp("whole"), name, network, keep)
            assert [r.committed for r in strategy.results] == [True, True]
            assert len(network.log) == MESSAGES
            known[name, keep] = left_behind(strategy, result)
            strategy.store.close()
        return known[name, keep]

    return get


@pytest.mark.parametrize("name", restarts.STRATEGIES)
@pytest.mark.parametrize("at", [17, 33, 51])
def test_killed_while_clients_work(name: str, at: int, uninterrupted: Any, tmp_path: Path) -> None:
    assert killed(lambda: program(tmp_path, name, dying_grid(at)))
    strategy, result = program(tmp_path, name, fed.grid())
    assert_left_the_same(left_behind(strategy, result), uninterrupted(name))
    check_sound(strategy)


@pytest.mark.parametrize(("every", "at"), [(2, 12), (2, 33), (3, 24), (3, 48)])
def test_models_that_no_checkpoint_keeps(at: int, every: int, uninterrupted: Any, tmp_path: Path) -> None:
    """Training goes on from the last round whatever the policy, and what is kept for it forgets too."""
    keep = KeepPolicy(every=every)
    assert killed(lambda: program(tmp_path, "FedAvgM", dying_grid(at), keep))
    strategy, result = program(tmp_path, "FedAvgM", fed.grid(), keep)
    assert_left_the_same(left_behind(strategy, result), uninterrupted("FedAvgM", keep))
    check_sound(strategy)


BOUNDARIES = {
    "before anything": before(RunLog, "save_snapshot"),
    "model written, snapshot not": before(RunLog, "save_snapshot", nth=2),
    "round recorded, older snapshot not removed": before(RunLog, "sweep", nth=3),
    "opened": before(RequestLog, "keep_file"),
    **{phase: after_phase(phase) for phase in ("fisher", "calibrated", "committed", "told", "done")},
    "before the decision": before(OperationLedger, "decide"),
    "decided, nothing in place": before(OperationLedger, "finish", nth=2),
    "decided, and not noted": after_decision,
    "decided, snapshot not rewritten": before(RunLog, "save_snapshot", nth=3),
    "second request decided, snapshot not rewritten": before(RunLog, "save_snapshot", nth=6),
    "all done, and not noted": before(RunLog, "finish"),
}


@pytest.mark.parametrize("where", BOUNDARIES)
def test_killed_between_two_steps(
    where: str, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        BOUNDARIES[where](m)
        assert killed(lambda: program(tmp_path, "FedAvgM", fed.grid()))
    strategy, result = program(tmp_path, "FedAvgM", fed.grid())
    assert_left_the_same(left_behind(strategy, result), uninterrupted("FedAvgM"))
    check_sound(strategy)


def test_killed_again_and_again(uninterrupted: Any, tmp_path: Path) -> None:
    for at in (13, 13, 7, 7, 7, 3):
        assert killed(lambda at=at: program(tmp_path, "FedAdam", dying_grid(at)))
    strategy, result = program(tmp_path, "FedAdam", fed.grid())
    assert_left_the_same(left_behind(strategy, result), uninterrupted("FedAdam"))
    check_sound(strategy)


# --------------------------------------------------------------------------- what a restart is
def test_rounds_keep_their_numbers(tmp_path: Path) -> None:
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"round": server_round})

    def run(network: fed.LocalGrid, *args: Any) -> Result:
        strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path, deterministic=True)
        return strategy.start(network, start(), *args, evaluate_fn=evaluate)

    assert killed(lambda: run(dying_grid(17), 4))
    result = run(fed.grid(), 4)
    assert seen == [3, 4], "neither the first model nor earlier rounds are evaluated again"
    assert list(result.train_metrics_clientapp) == [3, 4]
    assert {r: m["round"] for r, m in result.evaluate_metrics_serverapp.items()} == {3: 3, 4: 4}


def train(folder: Path, network: fed.LocalGrid, **kwargs: Any) -> tuple[UnlearningStrategy, Result]:
    strategy = UnlearningStrategy(kwargs.pop("inner", None) or fed.fedavg(), store=folder, deterministic=True)
    arguments = {"initial_arrays": start(), "num_rounds": 3, **kwargs}
    return strategy, strategy.start(network, **arguments)


def test_another_number_of_rounds_is_another_run(tmp_path: Path, caplog: Any) -> None:
    assert killed(lambda: train(tmp_path, dying_grid(12)))
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        strategy, _ = train(tmp_path, fed.grid(), num_rounds=2)
    assert "interrupted after 1 of 3 rounds; this one, of 2, is another" in caplog.text
    assert strategy.store.umig.last_round() == 3
    assert strategy.store.umig.parents("r0002-client-0") == {"r0001-global-changed": 1.0}
    strategy.store.close()
    assert train(tmp_path, fed.grid())[0].store.umig.last_round() == 6, "nothing is left to go on with"


def test_a_finished_run_is_not_taken_up(tmp_path: Path) -> None:
    for rounds in (3, 6):
        strategy, _ = train(tmp_path, fed.grid())
        assert strategy.store.umig.last_round() == rounds
        strategy.store.close()


def test_a_reopened_run_trains_no_more(tmp_path: Path) -> None:
    strategy, result = train(tmp_path, fed.grid())
    strategy.store.runs.reopen()
    strategy.store.close()
    network = fed.grid()
    assert train(tmp_path, network)[1].arrays == result.arrays
    assert network.log == []


def test_the_model_given_must_fit_but_is_not_used(tmp_path: Path) -> None:
    assert killed(lambda: train(tmp_path, dying_grid(12)))
    other = ArrayRecord({"head.weight": records.Array(fed.build_model().head.weight.detach().numpy())})
    with pytest.raises(ModelMismatchError, match="is the store of another model: missing"):
        train(tmp_path, fed.grid(), initial_arrays=other)
    changed = ArrayRecord({n: records.Array(a.numpy() + 1) for n, a in start().items()})
    strategy, _ = train(tmp_path, fed.grid(), initial_arrays=changed)
    assert [n.name for n in strategy.store.umig if "changed" in n.name] == []


def test_another_strategy_cannot_go_on(tmp_path: Path) -> None:
    momentum = restarts.STRATEGIES["FedAvgM"]
    assert killed(lambda: train(tmp_path, dying_grid(12), inner=momentum()))
    files = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    with pytest.raises(
        ModelMismatchError, match=r"that of FedAvgM, the strategy is FedAdam\. Use the same, or"
    ):
        train(tmp_path, fed.grid(), inner=restarts.STRATEGIES["FedAdam"]())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == files
    strategy, _ = train(tmp_path, fed.grid(), inner=momentum())
    assert strategy.store.umig.last_round() == 3, "nothing was lost by trying"


@pytest.mark.parametrize("how", ["cut", "changed", "deleted"])
@pytest.mark.parametrize("keep", [KeepPolicy(), KeepPolicy(every=2)], ids=["model kept", "model in snapshot"])
def test_damaged_snapshot(how: str, keep: KeepPolicy, tmp_path: Path, caplog: Any) -> None:
    def run(network: fed.LocalGrid) -> UnlearningStrategy:
        inner = restarts.STRATEGIES["FedAvgM"]()
        strategy = UnlearningStrategy(inner, store=tmp_path, keep=keep)
        strategy.start(network, start(), num_rounds=5)
        return strategy

    assert killed(lambda: run(dying_grid(22)))
    (path,) = (tmp_path / "recovery").iterdir()
    data = path.read_bytes()
    if how != "deleted":
        path.write_bytes(data[:-9] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(
            CorruptCheckpointError, match=r"recovery.* truncated or changed.* delete it to go on"
        ):
            run(fed.grid())
    path.unlink()
    strategy = run(fed.grid())
    assert "was deleted: what the server remembered beside the model is lost" in caplog.text
    assert strategy.store.umig.last_round() == 5
    changed = [n.name for n in strategy.store.umig if "changed" in n.name]
    assert changed == ([] if keep.every == 1 else ["r0003-global-changed"])


def test_a_changed_configuration_counts(tmp_path: Path) -> None:
    """What the operator changes for the restart is not overwritten by what was configured before."""

    def inner(rate: float) -> Any:
        return restarts.FedAvgM(**restarts.COMMON, server_learning_rate=rate, server_momentum=0.5)

    assert killed(lambda: train(tmp_path, dying_grid(12), inner=inner(0.7)))
    strategy, _ = train(tmp_path, fed.grid(), inner=inner(0.3))
    assert strategy.strategy.server_learning_rate == 0.3
    assert strategy.strategy.momentum_vector is not None


class Unfriendly(FedAvg):
    """Keeps an object that cannot be kept."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.history = [*getattr(self, "history", []), server_round]
        self.watcher = object()
        return super().aggregate_train(server_round, replies)


def test_what_cannot_be_kept_is_named(tmp_path: Path, caplog: Any) -> None:
    assert killed(lambda: train(tmp_path, dying_grid(12), inner=Unfriendly(**restarts.COMMON)))
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        strategy, _ = train(tmp_path, fed.grid(), inner=Unfriendly(**restarts.COMMON))
    assert strategy.strategy.history == [1, 2, 3]
    assert "is as it was constructed: Unfriendly.watcher" in caplog.text


class Endless(FedAvg):
    """A loop that is not told how many rounds."""

    def start(self, grid: Any, initial_arrays: ArrayRecord) -> None:  # type: ignore[override]
        arrays: Any = initial_arrays
        for r in (1, 2):
            replies = grid.send_and_receive(self.configure_train(r, arrays, ConfigRecord(), grid))
            arrays, _ = self.aggregate_train(r, replies)


def test_a_loop_that_takes_no_number_of_rounds_runs_again(tmp_path: Path, caplog: Any) -> None:
    def run(network: fed.LocalGrid) -> UnlearningStrategy:
        strategy = UnlearningStrategy(Endless(**restarts.COMMON), store=tmp_path)
        assert strategy.start(network, start()) is None  # type: ignore[func-returns-value]
        return strategy

    assert killed(lambda: run(dying_grid(12)))
    umig = run(fed.grid()).store.umig
    assert "takes no num_rounds, so it runs all of its rounds again" in caplog.text
    assert umig.last_round() == 3
    assert umig.parents("r0002-client-0") == {"r0001-global": 1.0}


class PassesOn(OwnLoop):
    def start(self, *args: Any, **kwargs: Any) -> Result:
        return super().start(*args, **kwargs)


@pytest.mark.parametrize(
    ("inner", "args", "kwargs", "rounds"),
    [
        (FedAvg, (5,), {}, 5),
        (FedAvg, (), {"num_rounds": 5}, 5),
        (FedAvg, (), {}, 3),
        (OwnLoop, (5,), {}, 5),
        (PassesOn, (5, 60.0), {}, 5),
        (PassesOn, (), {"num_rounds": 5}, 5),
        (PassesOn, (), {}, None),
        (Endless, (), {}, None),
        (FedAvg, ("five",), {}, None),
    ],
)
def test_how_many_rounds_a_loop_is_asked_for(inner: Any, args: Any, kwargs: Any, rounds: int | None) -> None:
    loop = recovery.Loop(inner(**restarts.COMMON).start, args, kwargs)
    assert loop.rounds == rounds
    loop.go_on(2)
    assert loop.rounds == (None if rounds is None else rounds - 2)
