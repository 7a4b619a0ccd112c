"""Forgetting a class over a Grid: between rounds, afterwards, alone, again; and that it lasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvgM

from fl_unlearn.dampen import apply_update
from fl_unlearn.flower import UnlearningStrategy, forget, unlearning_mod
from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, UnlearnSettings

THREE = ForgetRequest((3,), reason="test")
COMMON: dict[str, Any] = {
    "min_available_nodes": fed.CLIENTS,
    "min_train_nodes": fed.CLIENTS,
    "fraction_evaluate": 0.0,
}


def others(state: dict[str, torch.Tensor]) -> float:
    return sum(fed.accuracy(state, c) for c in (0, 1, 2)) / 3


def check_forgotten(store: RunStore, names: Any) -> None:
    for name in names:
        assert fed.accuracy(store.load(name).state, 3) == 0.0, name


def test_forget_after_training(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, keep=KeepPolicy(client_updates=True))
    store = strategy.store
    before = {n: store.load(n).state for n in store.kept()}
    assert fed.accuracy(before["r0004-global"], 3) > 0.9
    outcome = strategy.forget(grid, THREE, result.arrays)

    assert outcome.committed
    assert outcome.holders == {"1": 15, "2": 15}
    assert outcome.roots == ("r0001-client-1", "r0001-client-2")
    unaffected = {"r0000-initial", "r0001-client-0", "r0001-client-3", "r0001-client-4"}
    assert set(outcome.affected) == set(before) - unaffected
    check_forgotten(store, outcome.affected)
    final = result.arrays.to_torch_state_dict()
    assert fed.accuracy(final, 3) == 0.0
    assert others(final) >= others(before["r0004-global"]) - 0.005
    for name in before:
        expected = before[name] if name in unaffected else apply_update(before[name], outcome.update)
        for tensor in expected:
            assert torch.equal(store.load(name).state[tensor], expected[tensor])
    assert outcome.after is not None
    assert outcome.after[0].accuracy() == 0.0
    assert outcome.before is not None
    assert outcome.before[0].accuracy() == 1.0
    assert outcome.outstanding == ()
    assert outcome.bytes_down > outcome.bytes_up > 0
    assert store.operations.all()[0].request["classes"] == [3]


def test_forget_between_rounds_stays_forgotten(tmp_path: Path) -> None:
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    seen: list[int] = []
    strategy.on_request = lambda store: seen.append(store.umig.last_round())
    strategy.submit(THREE, after_round=3)
    result = strategy.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=6)
    assert seen == [3]
    assert strategy.results[0].committed
    check_forgotten(strategy.store, [f"r{r:04d}-global" for r in range(1, 7)])
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    assert others(result.arrays.to_torch_state_dict()) > 0.95


def test_a_request_left_over_is_served_at_the_end(tmp_path: Path) -> None:
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    strategy.submit(THREE)
    result = strategy.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=3)
    assert strategy.results[0].committed
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    latest = strategy.store.latest()[1].state
    assert all(torch.equal(latest[n], t) for n, t in result.arrays.to_torch_state_dict().items())


@pytest.mark.parametrize(
    "inner",
    [
        lambda: FedAvgM(**COMMON, server_learning_rate=0.5, server_momentum=0.9),
        lambda: FedAdam(**COMMON, eta=0.1, beta_1=0.9, beta_2=0.99),
    ],
    ids=["FedAvgM", "FedAdam"],
)
def test_what_the_server_remembers_is_forgotten(inner: Any, tmp_path: Path) -> None:
    strategy = UnlearningStrategy(inner(), store=tmp_path)
    grid = fed.grid()
    result = strategy.start(grid, ArrayRecord(fed.build_model().state_dict()), num_rounds=8)
    state = result.arrays.to_torch_state_dict()
    assert fed.accuracy(state, 3) > 0.5
    kept = dict(vars(strategy.strategy))
    momenta = kept.get("momentum_vector") or [kept["m_t"][n] for n in state]
    assert all(m.any() for m in momenta)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.update is not None
    arrays = strategy.strategy.current_arrays
    current = {n: torch.as_tensor(a if not hasattr(a, "numpy") else a.numpy()) for n, a in arrays.items()}
    momenta = vars(strategy.strategy).get("momentum_vector") or [strategy.strategy.m_t[n] for n in state]
    for i, name in enumerate(state):
        assert not momenta[i].any()
        if isinstance(arrays, ArrayRecord):
            assert torch.equal(current[name], torch.as_tensor(result.arrays[name].numpy()))


def test_without_dampening_the_server_state_the_values_would_come_back(tmp_path: Path) -> None:
    """The test above is worth something: FedAvgM that kept its arrays would undo half of the update."""
    inner = FedAvgM(**COMMON, server_learning_rate=0.5)
    strategy = UnlearningStrategy(inner, store=tmp_path)
    grid = fed.grid()
    strategy.submit(THREE, after_round=4)
    strategy.start(grid, ArrayRecord(fed.build_model().state_dict()), num_rounds=5)
    update = strategy.results[0].update
    assert update is not None
    dampened = strategy.store.load("r0004-global").state["head.weight"].flatten()
    after = strategy.store.load("r0005-global").state["head.weight"].flatten()
    entry = update.entries["head.weight"]
    undone = dampened[entry.indices.long()] / entry.factors.clamp(min=1e-6)
    moved = (after - dampened)[entry.indices.long()].abs()
    assert float(moved.mean()) < 0.25 * float((undone - dampened[entry.indices.long()]).abs().mean())


def test_a_finished_run_is_opened_again(tmp_path: Path) -> None:
    fed.trained(tmp_path)[0].store.close()
    with RunStore(tmp_path) as store:
        outcome = forget(fed.grid(), THREE, store)
        assert outcome.committed
        check_forgotten(store, outcome.applied)
        assert fed.accuracy(outcome.state, 3) == 0.0
        assert len(outcome.applied) == 4


def test_another_request_follows_and_training_goes_on(tmp_path: Path) -> None:
    fed.trained(tmp_path)[0].store.close()
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    strategy.submit(THREE, after_round=0)
    strategy.submit(ForgetRequest((0,)), after_round=1)
    result = strategy.start(fed.grid(), strategy.stored_arrays(), num_rounds=2)
    assert [r.committed for r in strategy.results] == [True, True]
    assert strategy.store.umig.last_round() == 6
    assert strategy.store.umig.last(NodeKind.INITIAL).name == "r0000-initial"
    state = result.arrays.to_torch_state_dict()
    assert [fed.accuracy(state, c) for c in (0, 3)] == [0.0, 0.0]
    assert min(fed.accuracy(state, c) for c in (1, 2)) > 0.9
    assert len(strategy.store.load("r0003-global").applied) == 2
    assert len(strategy.store.load("r0005-global").applied) == 1


def test_what_was_forgotten_before_is_not_retained_data(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    strategy.forget(grid, THREE, result.arrays)
    second = strategy.forget(grid, ForgetRequest((0,)), result.arrays)
    assert second.committed
    assert second.forgotten_before == (3,)
    assert second.before is not None
    assert sorted(second.before[0].total) == [0]
    assert sorted(second.before[1].total) == [1, 2], "class 3 counts neither as forgotten nor as retained"
    assert second.before[1].accuracy() == 1.0
    again = strategy.forget(grid, THREE, result.arrays)
    assert again.forgotten_before == (0,)
    assert again.before is not None
    assert sorted(again.before[0].total) == [3]


def test_two_classes_at_once_held_by_different_clients(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    outcome = strategy.forget(grid, ForgetRequest((1, 3)), result.arrays)
    assert outcome.committed
    state = result.arrays.to_torch_state_dict()
    assert max(fed.accuracy(state, c) for c in (1, 3)) <= 0.02
    assert min(fed.accuracy(state, c) for c in (0, 2)) > 0.9


def test_named_clients_who_hold_all_of_it(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    outcome = strategy.forget(grid, ForgetRequest((3,), clients=("1", "2")), result.arrays)
    assert outcome.committed
    assert outcome.holders == {"1": 15, "2": 15}
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0


def test_named_client_whose_data_is_like_everybodys_is_refused(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    before = result.arrays.copy()
    outcome = strategy.forget(grid, ForgetRequest((0,), clients=("4",)), result.arrays)
    assert not outcome.committed
    assert outcome.message.startswith("refused: none of the thresholds")
    assert outcome.holders == {"4": 15}
    assert result.arrays == before
    assert strategy.store.operations.all() == []


@pytest.mark.parametrize("kind", ["empirical", "normalized", "true", "batch"])
@pytest.mark.parametrize("scope", ["head", "all", "hidden.*,head.*"])
def test_every_kind_and_scope_runs(kind: Any, scope: str, tmp_path: Path) -> None:
    settings = UnlearnSettings(
        fisher_kind=kind, fisher_scope=scope, max_retain_drop=1.0, forget_tolerance=1.0
    )
    strategy, grid, result = fed.trained(tmp_path, settings=settings, rounds=2)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    touched = {n.partition(".")[0] for n in outcome.update.entries}  # type: ignore[union-attr]
    assert touched == ({"head"} if scope == "head" else {"hidden", "head"})


def test_references_per_model(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(
        tmp_path, settings=UnlearnSettings(reference="per-model", threshold=3.0)
    )
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    applied = {strategy.store.load(n).applied for n in outcome.applied}
    assert len(applied) == len(outcome.applied) == 4, "each checkpoint has an update of its own"
    check_forgotten(strategy.store, ["r0004-global"])


def test_fixed_threshold_that_fails_is_refused_unless_forced(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, settings=UnlearnSettings(threshold=15.0))
    assert not strategy.forget(grid, THREE, result.arrays).committed
    strategy.settings = UnlearnSettings(threshold=15.0, force=True)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert "did not pass calibration" in outcome.message
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) > 0.9


def test_a_client_away_during_the_commit_gets_the_update_before_it_trains_again(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    grid.away = {100}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert outcome.outstanding == ("0",)
    grid.away = set()
    grid.log.clear()
    strategy.start(grid, result.arrays, num_rounds=1)
    kinds = [kind for kind, node in grid.log if node == 100]
    assert kinds == ["query.unlearn_apply", "train"]
    assert strategy.store.operations.outstanding() == {}


def test_an_absent_client_counts_as_a_holder(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    grid.away = {104}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert "r0001-client-4" in outcome.roots
    assert outcome.committed


def test_models_in_the_context_are_dampened_once_with_receipts(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=3)
    state = result.arrays.to_torch_state_dict()
    grid.contexts[101].state["kept"] = ArrayRecord(state)
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.update is not None
    kept = grid.contexts[101].state["kept"].to_torch_state_dict()
    for name, tensor in apply_update(state, outcome.update).items():
        assert torch.equal(kept[name], tensor)
    assert outcome.receipts == ("""1: {"copy": "context.state['kept']", "status": "applied"}""",)
    # Delivered again (a lost receipt, say), nothing changes.
    from fl_unlearn.flower.broadcast import broadcast
    from fl_unlearn.flower.exchange import Exchange

    broadcast(Exchange(grid, 5.0), strategy.store, "again", outcome.update, {101: "1", 102: "2"})
    again = grid.contexts[101].state["kept"].to_torch_state_dict()
    assert all(torch.equal(again[n], t) for n, t in kept.items())


def test_client_fn_app_through_the_mod(tmp_path: Path) -> None:
    """An app built with client_fn answers the same queries; its arrays have no names but an order."""
    fed.trained(tmp_path)[0].store.close()

    class Client(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return parameters, 1, {}

    def make() -> ClientApp:
        mod = unlearning_mod(model=fed.build_model, data=fed.data, device="cpu")
        return ClientApp(client_fn=lambda context: Client().to_client(), mods=[mod])

    with RunStore(tmp_path) as store:
        outcome = forget(fed.grid(make=make), THREE, store)
    assert outcome.committed
    assert fed.accuracy(outcome.state, 3) == 0.0


def test_arrays_named_by_their_order(tmp_path: Path) -> None:
    names = list(fed.build_model().state_dict())
    _, grid, result = fed.trained(tmp_path / "named")
    state = result.arrays.to_torch_state_dict()
    with RunStore(tmp_path / "numbered") as store:
        numbered = {str(i): state[n] for i, n in enumerate(names)}
        store.record("r0000-initial", numbered, kind=NodeKind.INITIAL, round_=0)
        for i in range(fed.CLIENTS):
            store.record(
                f"u{i}",
                None,
                kind=NodeKind.CLIENT_UPDATE,
                round_=1,
                parents={"r0000-initial": 1.0},
                owner=str(i),
            )
        store.record(
            "g",
            numbered,
            kind=NodeKind.AGGREGATE,
            round_=1,
            parents={f"u{i}": 0.2 for i in range(fed.CLIENTS)},
        )
        outcome = forget(grid, THREE, store)
    assert outcome.committed
    assert set(outcome.update.entries) <= {"2", "3"}  # type: ignore[union-attr]
    assert fed.accuracy({n: outcome.state[str(i)] for i, n in enumerate(names)}, 3) == 0.0
