"""Interruptions that the program outlives, or after which it goes on otherwise: nothing old stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import federation as fed
import pytest
import restarts
import torch
from restarts import (
    after_decision,
    after_phase,
    assert_left_the_same,
    killed,
    left_behind,
)
from test_recovery_requests import afterwards, start

from fl_unlearn.audit_entry import read_head
from fl_unlearn.flower import UnlearningStrategy, forget, records, session
from fl_unlearn.flower.recorder import values_of
from fl_unlearn.flower.session import Session
from fl_unlearn.operations import OperationLedger
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import CheckpointStore
from fl_unlearn.types import UnlearnSettings

THREE = restarts.THREE


def interrupted(monkeypatch: pytest.MonkeyPatch, cls: Any, method: str, work: Callable[[], Any]) -> None:
    """The user presses Ctrl-C in a session that goes on, because a client does not answer."""
    with monkeypatch.context() as patched:
        patched.setattr(cls, method, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            work()


@pytest.mark.parametrize(
    "where", [(Session, "_tell"), (OperationLedger, "settle"), (CheckpointStore, "promote")]
)
def test_an_interruption_after_the_decision_leaves_no_old_values(
    where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = left_behind(*afterwards(tmp_path / "whole", fed.grid(), THREE))
    network = fed.grid()
    strategy, result = afterwards(tmp_path / "run", network)
    interrupted(monkeypatch, *where, lambda: strategy.forget(network, THREE, result.arrays))
    assert {n: a.data for n, a in result.arrays.items()} == whole["model"]
    strategy.store.operations.finish()
    strategy.forget(network, THREE, result.arrays)
    assert_left_the_same(left_behind(strategy, result), whole)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_model_from_before_the_decision_gets_the_update_too(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, network, trained = fed.trained(tmp_path)
    old = trained.arrays

    def serve() -> Any:
        current = old.copy()
        if wrapped:
            result = strategy.forget(network, THREE, current)
            assert values_of(records.to_arrays(result.state)) == values_of(current)
            return result
        return forget(network, THREE, strategy.store, current=current)

    interrupted(monkeypatch, Session, "_tell", serve)
    interrupted(monkeypatch, session, "ask_scores", serve)  # the phase before was noted by then
    result = serve()
    assert result.after[0].accuracy() == 0.0
    stored = strategy.store.latest()[1].state
    assert all(torch.equal(result.state[name], stored[name]) for name in stored)


def test_a_decision_stands_though_too_few_clients_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, network, trained = fed.trained(tmp_path)
    interrupted(monkeypatch, Session, "_tell", lambda: strategy.forget(network, THREE, trained.arrays))
    strategy.settings = UnlearnSettings(min_clients=99, timeout=0.1)
    result = strategy.forget(network, THREE, trained.arrays)
    assert result.committed
    assert result.message.startswith("committed t = ")
    assert "verifying it failed: 5 clients were connected" in result.message
    assert len(result.outstanding) == fed.CLIENTS
    strategy.deliver(network)
    assert strategy.store.operations.outstanding() == {}


@pytest.mark.parametrize("where", [after_phase("fisher"), after_decision], ids=["fisher", "decided"])
def test_requests_of_a_run_that_is_left_leave_nothing_behind(
    where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        where(monkeypatch)
        restarts.program(tmp_path, "FedAvg", fed.grid())

    assert killed(work)
    strategy = UnlearningStrategy(restarts.STRATEGIES["FedAvg"](), store=tmp_path)
    assert len(strategy.store.runs.requests.interrupted()) == 1
    strategy.start(fed.grid(), start(), num_rounds=restarts.ROUNDS + 1)
    assert strategy.store.runs.requests.interrupted() == []
    assert list((tmp_path / "requests").iterdir()) == []
    assert strategy.store.operations.outstanding() == {}
    failed = [e.body["request"] for e in strategy.store.audit.entries() if e.kind == "failed"]
    assert failed == ([] if strategy.store.operations.all() else [1])


def test_a_timeout_that_never_ends(tmp_path: Path) -> None:
    strategy, network, trained = fed.trained(tmp_path, settings=UnlearnSettings(timeout=float("inf")))
    assert strategy.forget(network, THREE, trained.arrays).committed


def test_the_head_of_the_audit_log_is_published_with_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = tmp_path / "head"
    store = RunStore(tmp_path / "store", audit_head=head)
    strategy = UnlearningStrategy(fed.fedavg(), store=store)
    network = fed.grid()
    arrays = strategy.start(network, start(), num_rounds=3).arrays
    interrupted(monkeypatch, Session, "_tell", lambda: strategy.forget(network, THREE, arrays))
    strategy.deliver(network)
    newest = store.audit.head()
    assert newest is not None
    assert (newest.kind, newest.seq) == ("receipt", read_head(head)["seq"])
