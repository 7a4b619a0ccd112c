"""A request whose server died goes on after its last completed phase, once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import restarts
from flwr.app import ArrayRecord
from restarts import (
    after_decision,
    after_phase,
    assert_left_the_same,
    before,
    check_sound,
    killed,
    left_behind,
)

from fl_unlearn.flower import UnlearningStrategy, forget, records
from fl_unlearn.request_log import RequestLog
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, NotEnoughAnswersError, UnlearnSettings

THREE, ZERO = restarts.THREE, restarts.ZERO
FORGET = UnlearnSettings()


def start() -> ArrayRecord:
    return ArrayRecord(fed.build_model().state_dict())


def afterwards(folder: Path, network: fed.LocalGrid, *requests: ForgetRequest) -> tuple[Any, Any]:
    """A program that forgets when ``start`` has returned."""
    strategy = UnlearningStrategy(
        restarts.STRATEGIES["FedAvgM"](), store=folder, deterministic=True, keep=KeepPolicy(every=2)
    )
    result = strategy.start(network, start(), num_rounds=3)
    for request in requests:
        strategy.forget(network, request, result.arrays)
    return strategy, result


@pytest.mark.parametrize(
    "where", [after_phase("fisher"), after_decision, after_phase("told")], ids=["fisher", "decided", "told"]
)
@pytest.mark.parametrize("nth", [0, 1])
def test_forgetting_after_the_run(
    where: Any, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = left_behind(*afterwards(tmp_path / "whole", fed.grid(), THREE, ZERO))

    def work() -> None:
        requests = (THREE, ZERO)
        strategy, result = afterwards(tmp_path / "run", fed.grid(), *requests[:nth])
        with monkeypatch.context() as m:
            where(m)
            strategy.forget(fed.grid(), requests[nth], result.arrays)

    assert killed(work)
    network = fed.grid()
    strategy, result = afterwards(tmp_path / "run", network, THREE, ZERO)
    assert "train" not in {kind for kind, _ in network.log}, "a run that was finished trains no more"
    assert_left_the_same(left_behind(strategy, result), whole)
    check_sound(strategy)
    assert strategy.store.umig.last_round() == 3
    # From now on, the same request is a new one.
    strategy.forget(network, THREE, result.arrays)
    assert [o.request["classes"] for o in strategy.store.operations.all()] == [[3], [0], [3]]


def test_clients_that_confirmed_are_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed.trained(tmp_path)[0].store.close()

    def run() -> tuple[Any, list[int]]:
        network = fed.grid()
        for node in network.contexts:
            network.contexts[node].state["kept"] = start()
        with RunStore(tmp_path) as store:
            result = forget(network, THREE, store)
        return result, [node for kind, node in network.log if kind == "query.unlearn_apply"]

    with monkeypatch.context() as m:
        before(RequestLog, "add_receipts", nth=2)(m)
        assert killed(run)
    result, told = run()
    assert told == [102, 103, 104]
    assert sorted(r.partition(":")[0] for r in result.receipts) == ["0", "1", "2", "3", "4"]
    assert result.outstanding == ()


@pytest.mark.parametrize(
    ("phase", "again"),
    [("fisher", ["score", "apply", "score"]), ("calibrated", ["apply", "score"]), ("told", ["score"])],
)
def test_completed_phases_are_not_repeated(
    phase: str, again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed.trained(tmp_path)[0].store.close()

    def run(network: fed.LocalGrid) -> Any:
        with RunStore(tmp_path) as store:
            return forget(network, THREE, store)

    with monkeypatch.context() as m:
        after_phase(phase)(m)
        assert killed(lambda: run(fed.grid()))
    network = fed.grid()
    result = run(network)
    asked = [kind.removeprefix("query.unlearn_") for kind, node in network.log if node == 100]
    assert asked == ["identity", *again]
    assert result.committed
    assert result.holders == {"1": 15, "2": 15}
    assert fed.accuracy(result.state, 3) == 0.0
    assert result.asked == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("phase", ["fisher", "calibrated", "committed"])
def test_references_per_model_go_on(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = UnlearnSettings(reference="per-model", threshold=3.0)
    expected = {}
    for name in ("whole", "run"):
        fed.trained(tmp_path / name)[0].store.close()

    def run(name: str) -> Any:
        with RunStore(tmp_path / name) as store:
            forget(fed.grid(), THREE, store, settings=settings)
            return {n: (store.load(n).applied, store.load(n).info.digest) for n in sorted(store.kept())}

    expected = run("whole")
    with monkeypatch.context() as m:
        (after_phase(phase) if phase != "fisher" else before(RequestLog, "note"))(m)
        assert killed(lambda: run("run"))
    assert run("run") == expected


def test_other_settings_begin_anew_unless_it_was_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = UnlearnSettings(candidates=(2.0, 4.0))
    for phase, served in (("calibrated", 2), ("committed", 1)):
        folder = tmp_path / phase
        fed.trained(folder)[0].store.close()

        def run(settings: UnlearnSettings, folder: Path = folder, served: int = served) -> Any:
            with RunStore(folder) as store:
                result = forget(fed.grid(), THREE, store, settings=settings)
                return result, store.runs.requests.row(served).phase, len(store.operations.all())

        with monkeypatch.context() as m:
            after_phase(phase)(m)
            assert killed(lambda run=run: run(FORGET))
        result, state, decided = run(other)
        assert (state, decided) == ("done", 1)
        assert ({c.threshold for c in result.candidates} == {2.0, 4.0}) == (served == 2)


def test_a_request_of_an_older_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not know all of today's settings; what it did not know it did by today's defaults."""
    fed.trained(tmp_path)[0].store.close()

    def run(network: fed.LocalGrid, **changes: Any) -> Any:
        with RunStore(tmp_path) as store:
            return forget(network, THREE, store, settings=UnlearnSettings(**changes))

    with monkeypatch.context() as m:
        known = UnlearnSettings.to_json
        new = ("erase", "erase_strength", "erase_snapshots", "reference_share", "measures")
        m.setattr(UnlearnSettings, "to_json", lambda s: {k: v for k, v in known(s).items() if k not in new})
        after_phase("calibrated")(m)
        assert killed(lambda: run(fed.grid()))
    network = fed.grid()
    assert run(network).committed
    assert [
        kind for kind, node in network.log if kind in ("query.unlearn_fisher", "query.unlearn_apply")
    ] == ["query.unlearn_apply"] * fed.CLIENTS


@pytest.mark.parametrize("how", ["another model", "damaged", "gone"])
def test_what_an_interrupted_request_kept_must_fit(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the clients are asked again."""
    fed.trained(tmp_path)[0].store.close()

    def run(network: fed.LocalGrid, current: ArrayRecord | None = None) -> Any:
        with RunStore(tmp_path) as store:
            return forget(network, THREE, store, current=current)

    with monkeypatch.context() as m:
        after_phase("fisher")(m)
        assert killed(lambda: run(fed.grid()))
    (path,) = (tmp_path / "requests").rglob("*.safetensors")
    current = None
    if how == "another model":
        with RunStore(tmp_path) as store:
            current = records.to_arrays(store.load("r0003-global").state)
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    network = fed.grid()
    assert run(network, current).committed
    assert sum(kind == "query.unlearn_fisher" for kind, _ in network.log) == fed.CLIENTS


def test_the_observer_never_sees_what_is_dampened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def observe(store: RunStore) -> None:
        seen.append(fed.accuracy(store.load("r0002-global").state, 3))

    def run() -> UnlearningStrategy:
        strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path, on_request=observe, deterministic=True)
        strategy.submit(THREE)
        strategy.start(fed.grid(), start(), num_rounds=2)
        return strategy

    for where, calls in ((after_phase("calibrated"), 0), (after_decision, 0), (after_phase("told"), 0)):
        with monkeypatch.context() as m:
            where(m)
            assert killed(run)
        assert len(seen) == calls, "the processes that died saw it, this one has not"
    strategy = run()
    assert seen == []
    assert strategy.results[0].committed


def test_a_refusal_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like_everybody = ForgetRequest((0,), clients=("4",))

    def run(network: fed.LocalGrid) -> UnlearningStrategy:
        strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path, deterministic=True)
        strategy.submit(like_everybody, after_round=1)
        strategy.start(network, start(), num_rounds=2)
        return strategy

    with monkeypatch.context() as m:
        after_phase("refused")(m)
        assert killed(lambda: run(fed.grid()))
    network = fed.grid()
    strategy = run(network)
    assert [r.message[:9] for r in strategy.results] == ["refused: "]
    assert strategy.results[0].before is not None
    assert not any("fisher" in kind for kind, _ in network.log)


def test_a_request_that_failed_leaves_nothing_and_is_served_anew(tmp_path: Path) -> None:
    strategy, network, result = fed.trained(tmp_path, rounds=2)
    strategy.settings = UnlearnSettings(timeout=0.1, min_clients=9)
    with pytest.raises(NotEnoughAnswersError):
        strategy.forget(network, THREE, result.arrays)
    assert strategy.store.runs.requests.row(1).phase == "failed"
    strategy.settings = FORGET
    assert strategy.forget(network, THREE, result.arrays).committed
    assert strategy.store.runs.requests.row(2).phase == "done"
    assert not [*(tmp_path / "requests").glob("*")]
    assert strategy.store.operations.all()[0].request["request"] == 2


def test_a_request_left_over_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def work() -> None:
        strategy, result = afterwards(tmp_path, fed.grid())
        after_phase("fisher")(monkeypatch)
        strategy.forget(fed.grid(), THREE, result.arrays)

    assert killed(work)
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        strategy, _ = afterwards(tmp_path, fed.grid())
    assert (
        "the request to forget class 3 was interrupted after the phase 'fisher': make it again" in caplog.text
    )
    assert strategy.store.umig.last_round() == 3
    strategy.store.runs.requests.give_up(1)
    strategy.store.close()
    assert afterwards(tmp_path, fed.grid())[0].store.umig.last_round() == 6


def test_forgetting_without_the_strategy_reaches_what_it_remembers(tmp_path: Path) -> None:
    """`forget` on a store alone rewrites the snapshot to what the strategy would have written."""
    whole = left_behind(*afterwards(tmp_path / "whole", fed.grid(), THREE))
    strategy, result = afterwards(tmp_path / "run", fed.grid())
    forget(fed.grid(), THREE, strategy.store, current=result.arrays)
    snapshot = strategy.store.runs.snapshot()
    assert snapshot is not None
    assert (snapshot.node, snapshot.digest, snapshot.operations) == whole["snapshot"]
    assert [p.name for p in (tmp_path / "run" / "recovery").iterdir()] == [snapshot.file.name]  # type: ignore[union-attr]
