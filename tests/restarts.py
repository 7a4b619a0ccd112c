"""A small program that trains and forgets, killed where a test says, started again, and what it left."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from crashes import killed as killed
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Result,
    Strategy,
)

from fl_unlearn.flower import UnlearningStrategy, strategy_state
from fl_unlearn.flower.progress import Progress
from fl_unlearn.operations import OperationLedger
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest

COMMON: dict[str, Any] = {
    "min_available_nodes": fed.CLIENTS,
    "min_train_nodes": fed.CLIENTS,
    "fraction_evaluate": 0.0,
}
THREE, ZERO = ForgetRequest((3,)), ForgetRequest((0,))
ROUNDS = 4


class OwnLoop(FedAvgM):
    """A strategy with a ``start`` of its own."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **_: Any) -> Result:
        result = Result(arrays=initial_arrays)
        for r in range(1, num_rounds + 1):
            messages = self.configure_train(r, result.arrays, ConfigRecord(), grid)
            arrays, metrics = self.aggregate_train(r, grid.send_and_receive(messages))
            assert arrays is not None
            assert metrics is not None
            result.arrays, result.train_metrics_clientapp[r] = arrays, metrics
        return result


class SeededDP(DifferentialPrivacyServerSideAdaptiveClipping):
    """Noise that depends on the round alone."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        np.random.seed(server_round)
        return super().aggregate_train(server_round, replies)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**COMMON),
    "FedAvgM": lambda: FedAvgM(**COMMON, server_learning_rate=0.7, server_momentum=0.5),
    "FedAdam": lambda: FedAdam(**COMMON, eta=0.1),
    "DP": lambda: SeededDP(
        FedAvgM(**COMMON, server_momentum=0.5), 0.01, fed.CLIENTS, initial_clipping_norm=2.0
    ),
    "own start": lambda: OwnLoop(**COMMON, server_momentum=0.5),
}


def program(
    folder: Path, name: str, network: fed.LocalGrid, keep: KeepPolicy | None = None
) -> tuple[UnlearningStrategy, Result]:
    """What the operator starts, and starts again."""
    random.seed(0)
    strategy = UnlearningStrategy(
        STRATEGIES[name](), store=folder, deterministic=True, keep=keep or KeepPolicy()
    )
    strategy.submit(THREE, after_round=2)
    strategy.submit(ZERO)
    result = strategy.start(network, ArrayRecord(fed.build_model().state_dict()), num_rounds=ROUNDS)
    return strategy, result


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_grid(at: int) -> fed.LocalGrid:
    """A federation whose server dies when the answer to its ``at``-th message arrives."""
    left = [at]

    def tamper(_: Message, reply: Message) -> Message:
        if left[0] == 0:
            die()
        left[0] -= 1
        return reply

    return fed.grid(tamper)


def before(cls: type, method: str, nth: int = 0) -> Callable[[pytest.MonkeyPatch], None]:
    """Die at the ``nth`` call of a method."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        left, call = [nth], getattr(cls, method)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                die()
            left[0] -= 1
            return call(*args, **kwargs)

        monkeypatch.setattr(cls, method, dying)

    return patch


def after_phase(phase: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        note = Progress.note

        def dying(self: Progress, reached: str) -> None:
            note(self, reached)
            if reached == phase:
                die()

        monkeypatch.setattr(Progress, "note", dying)

    return patch


def after_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = OperationLedger.finish

    def dying(self: OperationLedger) -> None:
        finish(self)
        if self.all():
            die()

    monkeypatch.setattr(OperationLedger, "finish", dying)


def left_behind(strategy: UnlearningStrategy, result: Result) -> dict[str, Any]:
    """Everything that must be the same with and without an interruption."""
    store, umig = strategy.store, strategy.store.umig
    loaded = {name: store.load(name) for name in sorted(store.kept())}
    snapshot = store.runs.snapshot()
    assert snapshot is not None
    return {
        "model": {n: a.data for n, a in result.arrays.items()},
        "lineage": [(n.name, n.kind, n.round, n.owner, n.digest, umig.parents(n.name)) for n in umig],
        "checkpoints": {n: (c.applied, c.info.digest) for n, c in loaded.items()},
        "strategy": strategy_state.write(strategy.strategy, {}, live=result.arrays, with_model=False),
        "snapshot": (snapshot.node, snapshot.digest, snapshot.operations),
        "operations": [(o.digest, o.request["classes"]) for o in store.operations.all()],
        "outstanding": store.operations.outstanding(),
        "results": [
            (
                r.request,
                r.committed,
                r.message,
                r.update.digest if r.update else None,
                r.roots,
                r.affected,
                r.applied,
                r.forgotten_before,
                r.holders,
                r.asked,
                r.failed,
                r.silent,
                r.outstanding,
                r.receipts,
                r.candidates,
                r.before,
                r.after,
            )
            for r in strategy.results
        ],
        "files": sorted(
            str(p.relative_to(store.folder))
            for p in store.folder.rglob("*")
            if p.is_file() and "sqlite" not in p.name
        ),
    }


def assert_left_the_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in expected:
        assert got[key] == expected[key], key


def check_sound(strategy: UnlearningStrategy) -> None:
    """Each operation reached each affected checkpoint once, and nobody waits."""
    store = strategy.store
    for result in strategy.results:
        assert result.update is not None
        for name in result.affected:
            if name in store.kept():
                assert store.load(name).applied.count(result.update.digest) == 1
    assert store.operations.pending() == set()
    assert not [*store.folder.rglob("*.partial"), *store.folder.rglob("*.staged")]
    assert not [*(store.folder / "requests").glob("*")], "what derives from forgotten data is removed"
