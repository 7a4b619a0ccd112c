"""What must not go wrong quietly: unmeasured taken for forgotten, models or clients missed, runs stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result
from test_flower_bad_input import change_head, spoiling
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.flower import UnlearningStrategy, attach, records
from fl_unlearn.flower.server_state import dampen_strategy
from fl_unlearn.lineage import NodeKind
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, NotEnoughAnswersError, UnlearnSettings

THREE = ForgetRequest((3,))


def start() -> ArrayRecord:
    return ArrayRecord(fed.build_model().state_dict())


# --------------------------------------------------------------------------- unmeasured is not forgotten
def test_holders_that_do_not_score_are_no_proof(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)

    def tamper(request: Message, reply: Message) -> Message | None:
        silent = request.metadata.message_type == "query.unlearn_score"
        return None if silent and request.metadata.dst_node_id in (101, 102) else reply

    grid.tamper = tamper
    with pytest.raises(NotEnoughAnswersError, match="no client scored the candidates on forgotten data"):
        strategy.forget(grid, THREE, result.arrays)
    assert strategy.store.operations.all() == []


def test_an_update_that_changes_nothing_is_not_committed(tmp_path: Path) -> None:
    settings = UnlearnSettings(threshold=1e6, force=True)
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=settings)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert not outcome.committed
    assert "changes no value" in outcome.message


def test_one_client_with_absurd_counts_does_not_decide(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.tamper = spoiling(records.SCORE, {103}, change_head(total=[10**9] * 3))
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert "where this client trained on at most 45" in outcome.failed["3"]
    assert outcome.committed


def test_the_message_says_how_many_clients_spoke(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.away = {100, 103, 104}
    assert "(2 of 2 connected clients)" in strategy.forget(grid, THREE, result.arrays).message


# --------------------------------------------------------------------------- no model is missed
@pytest.mark.parametrize("how", ["newest not kept", "other dtype"])
def test_a_resumed_run_keeps_its_ancestry(how: str, tmp_path: Path) -> None:
    inner = (
        fed.fedavg()
        if how == "newest not kept"
        else FedAdam(
            min_available_nodes=fed.CLIENTS, min_train_nodes=fed.CLIENTS, fraction_evaluate=0.0, eta=0.1
        )
    )
    keep = KeepPolicy(every=2) if how == "newest not kept" else KeepPolicy()
    first = UnlearningStrategy(inner, store=tmp_path, keep=keep)
    result = first.start(fed.grid(), start(), num_rounds=5)
    model = fed.build_model()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    first.store.close()
    again = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    grid = fed.grid()
    final = again.start(grid, ArrayRecord(model.state_dict()), num_rounds=1)
    umig = again.store.umig
    assert [n.name for n in umig.nodes(kind=NodeKind.INITIAL)] == ["r0000-initial"]
    assert umig.parents("r0005-global-changed") == {"r0005-global": 1.0}
    outcome = again.forget(grid, THREE, final.arrays)
    assert outcome.committed
    assert fed.accuracy(again.store.load("r0005-global-changed").state, 3) == 0.0


def test_forgetting_the_live_model_when_the_newest_was_not_kept(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=5, keep=KeepPolicy(every=2))
    assert strategy.forget(grid, THREE).committed
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0


def test_clients_that_deleted_their_data_count_with_all_affected(tmp_path: Path) -> None:
    deleted: set[int] = set()

    def data(context: Context) -> Any:
        partition = int(context.node_config["partition-id"])
        return fed.loader(partition, exclude=(3,) if partition in deleted else ())

    def make() -> Any:
        return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")

    found = {}
    for all_affected in (False, True):
        deleted.clear()
        settings = UnlearnSettings(all_affected=all_affected)
        strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path / str(all_affected), settings=settings)
        grid = fed.grid(make=make)
        result = strategy.start(grid, start(), num_rounds=2)
        deleted.add(1)
        found[all_affected] = strategy.forget(grid, THREE, result.arrays).roots
    assert found[False] == ("r0001-client-2",)
    assert found[True] == tuple(f"r0001-client-{i}" for i in range(fed.CLIENTS))


# --------------------------------------------------------------------------- the server's own state
def test_momentum_is_forgotten_without_arrays_too(tmp_path: Path) -> None:
    inner = FedAvgM(
        min_available_nodes=fed.CLIENTS,
        min_train_nodes=fed.CLIENTS,
        fraction_evaluate=0.0,
        server_momentum=0.5,
    )
    strategy = UnlearningStrategy(inner, store=tmp_path)
    grid = fed.grid()
    strategy.start(grid, start(), num_rounds=4)
    assert inner.momentum_vector is not None
    assert all(m.any() for m in inner.momentum_vector)
    assert strategy.forget(grid, THREE).committed
    assert not any(m.any() for m in inner.momentum_vector)


def test_what_is_dampened_and_what_is_reported_as_not_understood(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    update = strategy.forget(grid, THREE, result.arrays).update
    assert update is not None
    state = fed.build_model().state_dict()
    names = list(state)

    class Hoarder(FedAvg):
        def __init__(self, inner: FedAvg | None = None) -> None:
            super().__init__()
            self.ema = {n: t.clone() for n, t in state.items()}
            self.history = [ArrayRecord(state), ArrayRecord(state)]
            self.steps = ArrayRecord([np.zeros(3, dtype=np.int64)])
            self.v_t = {n: t.numpy().copy() for n, t in state.items()}
            self.odd = [np.zeros(2)]
            self.teacher = inner

    outer = Hoarder(Hoarder())
    done, skipped = dampen_strategy(outer, update, names, None)
    assert sorted(done) == sorted(["Hoarder.ema", "Hoarder.history", "Hoarder.history", "Hoarder.v_t"] * 2)
    assert sorted(skipped) == sorted(["Hoarder.steps", "Hoarder.odd"] * 2)
    assert outer.teacher is not None
    for holder in (outer, outer.teacher):
        for name, entry in update.entries.items():
            index, factors = entry.indices.long(), entry.factors
            expected = state[name].flatten()[index] * factors
            torch.testing.assert_close(holder.ema[name].flatten()[index], expected)
            record = holder.history[1][name].numpy().flatten()
            torch.testing.assert_close(torch.from_numpy(record)[index], expected)
            second = torch.from_numpy(holder.v_t[name]).flatten()[index]
            torch.testing.assert_close(second, expected * factors)


# --------------------------------------------------------------------------- a run is not stopped
def test_trouble_in_the_observer_is_no_reason_to_stop_training(tmp_path: Path) -> None:
    def observe(store: Any) -> None:
        raise FileNotFoundError("no test data")

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path, on_request=observe)
    strategy.submit(THREE, after_round=1)
    result = strategy.start(fed.grid(), start(), num_rounds=2)
    assert len(result.train_metrics_clientapp) == 2
    assert strategy.results[0].message == "failed: FileNotFoundError: no test data"


def test_a_lost_update_file_does_not_stop_training(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.away = {100}
    outcome = strategy.forget(grid, THREE, result.arrays)
    (tmp_path / "updates" / f"{outcome.update.digest}.safetensors").unlink()  # type: ignore[union-attr]
    grid.away = set()
    strategy.start(grid, result.arrays, num_rounds=1)
    assert strategy.store.umig.last_round() == 3
    assert list(strategy.store.operations.outstanding()) == ["0"]


@pytest.mark.parametrize("name", ["a\0b", "node-5", "长" * 60, "\ud800", "a\nb"])
def test_odd_client_names_do_not_stop_training(name: str, tmp_path: Path) -> None:
    def make() -> Any:
        def named(context: Context) -> str:
            partition = int(context.node_config["partition-id"])
            return name if partition == 0 else str(partition)

        return attach(fed.plain_app(), model=fed.build_model, data=fed.data, client_name=named, device="cpu")

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path, keep=KeepPolicy(client_updates=True))
    strategy.start(fed.grid(make=make), start(), num_rounds=1)
    assert strategy.store.umig.owners() == ["1", "2", "3", "4", "node-100"]


def test_two_nodes_with_one_name_are_both_recorded(tmp_path: Path) -> None:
    def make() -> Any:
        return attach(
            fed.plain_app(), model=fed.build_model, data=fed.data, client_name=lambda c: "x", device="cpu"
        )

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    grid = fed.grid(make=make)
    strategy.start(grid, start(), num_rounds=1)
    assert len(strategy.store.umig.parents("r0001-global")) == fed.CLIENTS


def test_loops_of_their_own_that_return_nothing_or_count_twice(tmp_path: Path) -> None:
    class Twice(FedAvg):
        def start(self, grid: Any, initial_arrays: ArrayRecord, **_: Any) -> Result:  # type: ignore[override]
            arrays: Any = initial_arrays
            for _ in range(2):
                for r in (1, 2):
                    replies = grid.send_and_receive(self.configure_train(r, arrays, ConfigRecord(), grid))
                    arrays, _ = self.aggregate_train(r, replies)
            return None  # type: ignore[return-value]

    inner = Twice(min_available_nodes=fed.CLIENTS, min_train_nodes=fed.CLIENTS)
    strategy = UnlearningStrategy(inner, store=tmp_path)
    strategy.submit(THREE)
    assert strategy.start(fed.grid(), start()) is None
    assert strategy.results[0].committed
    assert [n.name for n in strategy.store.umig.nodes(kind=NodeKind.AGGREGATE)] == [
        f"r{r:04d}-global" for r in (1, 2, 3, 4)
    ]


def test_rounds_may_follow_a_request_without_start(tmp_path: Path) -> None:
    fed.trained(tmp_path, rounds=2)[0].store.close()
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    grid, arrays = fed.grid(), strategy.stored_arrays()
    assert strategy.forget(grid, THREE, arrays).committed
    replies = grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    strategy.aggregate_train(1, replies)
    assert strategy.store.umig.parents("r0003-client-0") == {"r0002-global": 1.0}


# --------------------------------------------------------------------------- no client is missed
def test_a_client_that_is_back_gets_the_update_before_the_next_request(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=3)
    grid.away = {100}
    strategy.forget(grid, THREE, result.arrays)
    grid.away = set()
    grid.log.clear()
    strategy.forget(grid, ForgetRequest((0,)), result.arrays)
    asked = [kind for kind, node in grid.log if node == 100]
    assert asked[:3] == ["query.unlearn_identity", "query.unlearn_apply", "query.unlearn_fisher"]
    assert strategy.store.operations.outstanding() == {}


def test_updates_can_be_delivered_after_the_last_round(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.away = {100, 104}
    strategy.forget(grid, THREE, result.arrays)
    grid.away = {104}
    strategy.deliver(grid)
    assert list(strategy.store.operations.outstanding()) == ["4"]


def test_a_client_that_only_confirms_is_settled(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.tamper = spoiling(records.FISHER, {100}, change_head(client=""))
    strategy.forget(grid, THREE, result.arrays)
    assert strategy.store.operations.outstanding() == {}


def test_a_copy_of_another_shape_is_named_in_a_receipt(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.contexts[101].state["own-head"] = ArrayRecord({"weight": records.Array(np.ones(3))})
    receipts = strategy.forget(grid, THREE, result.arrays).receipts
    assert any("own-head" in r and "skipped: no copy of this model" in r for r in receipts)


# --------------------------------------------------------------------------- loaders as people have them
@pytest.mark.parametrize("kind", ["shuffled, last batch dropped", "one-shot iterator", "dicts"])
def test_loaders_as_people_have_them(kind: str, tmp_path: Path) -> None:
    def data(context: Context) -> Any:
        x, y = fed.client_data(int(context.node_config["partition-id"]))
        if kind == "dicts":
            return [{"features": x, "label": y}]
        if kind == "one-shot iterator":
            return iter([(x[i : i + 7], y[i : i + 7]) for i in range(0, len(y), 7)])
        return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, drop_last=True)

    def make() -> Any:
        return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    grid = fed.grid(make=make)
    result = strategy.start(grid, start(), num_rounds=3)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.failed == {}
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) <= 0.04
