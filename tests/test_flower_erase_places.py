"""Wherever else a model is: clients' copies, what the server remembers, a request that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from federation_checks import THREE
from federation_erase import DEEP, State, deep
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvgM
from restarts import after_decision, after_phase, killed
from torch.testing import assert_close

from fl_unlearn.dampen import apply_update
from fl_unlearn.flower import OwnCopies, UnlearningStrategy, attach, forget
from fl_unlearn.run_store import RunStore
from fl_unlearn.tensor_file import decode, encode
from fl_unlearn.types import ForgetRequest, UnlearnSettings


# --------------------------------------------------------------------------- where else models are
def test_copies_that_clients_keep(tmp_path: Path) -> None:
    copy, copies = tmp_path / "best.safetensors", OwnCopies(tmp_path / "remembered")

    def make() -> ClientApp:
        return attach(fed.plain_app(), model=fed.build_model, data=fed.data, copies=copies, device="cpu")

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path / "store", settings=DEEP)
    grid = fed.grid(make=make)
    result = strategy.start(grid, ArrayRecord(fed.build_model().state_dict()), num_rounds=3)
    state = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    copy.write_bytes(encode(state))
    copies.keep(grid.contexts[102], copy, Message(RecordDict(), 102, "train"))
    grid.contexts[101].state["kept"] = ArrayRecord(state)
    grid.contexts[102].state["part"] = ArrayRecord({"head.weight": Array(state["head.weight"].numpy())})
    outcome = strategy.forget(grid, THREE, result.arrays)
    expected = apply_update(state, outcome.update)
    assert_close(decode(copy.read_bytes(), "copy").state, expected, atol=0, rtol=0)
    in_state = grid.contexts[101].state["kept"].to_torch_state_dict()
    assert_close(dict(in_state), expected, atol=0, rtol=0)
    part = grid.contexts[102].state["part"].to_torch_state_dict()
    assert_close(dict(part), {"head.weight": expected["head.weight"]}, atol=0, rtol=0)
    assert outcome.outstanding == ()


def test_an_error_in_one_copy_changes_no_other_twice(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, rounds=2)
    state = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    own = grid.contexts[101].state
    own["a"], own["quantised"] = (
        ArrayRecord(state),
        ArrayRecord({n: t.to(torch.int8) for n, t in state.items()}),
    )
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.outstanding == ("1",)
    once = apply_update(state, outcome.update)
    assert_close(dict(own["a"].to_torch_state_dict()), once, atol=0, rtol=0)
    assert any("quantised" in r and "is int8 in it; only" in r for r in outcome.receipts)
    strategy.deliver(grid)
    assert list(strategy.store.operations.outstanding()) == ["1"]
    del own["quantised"]
    strategy.forget(grid, ForgetRequest((0,)), result.arrays)
    assert strategy.store.operations.outstanding() == {}
    update = strategy.store.update(strategy.store.operations.all()[-1].client_update)
    assert_close(dict(own["a"].to_torch_state_dict()), apply_update(once, update), atol=0, rtol=0)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: FedAvgM(
            min_available_nodes=5, min_train_nodes=5, server_learning_rate=0.5, server_momentum=0.9
        ),
        lambda: FedAdam(min_available_nodes=5, min_train_nodes=5, eta=0.1, beta_1=0.9, beta_2=0.99),
    ],
    ids=["FedAvgM", "FedAdam"],
)
def test_what_the_server_remembers(inner: Callable[[], Any], tmp_path: Path) -> None:
    settings = UnlearnSettings.preset("deep", forget_tolerance=0.2)
    strategy = UnlearningStrategy(inner(), store=tmp_path, settings=settings)
    grid = fed.grid()
    result = strategy.start(grid, ArrayRecord(fed.build_model().state_dict()), num_rounds=6)
    names, kept = list(result.arrays), strategy.strategy

    def held(attribute: str) -> State:
        value = getattr(kept, attribute)
        arrays = value if isinstance(value, list) else [value[n] for n in names]
        plain = [a.numpy() if isinstance(a, Array) else a for a in arrays]
        return {n: torch.as_tensor(a.copy()).double() for n, a in zip(names, plain, strict=True)}

    attributes = [a for a in ("momentum_vector", "m_t", "v_t", "current_arrays") if getattr(kept, a, None)]
    before = {a: held(a) for a in attributes}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    erased = outcome.update.erasures["hidden"].erasure
    dense = erased.linear(torch.eye(24).double())
    for attribute in attributes:
        after, old = held(attribute), before[attribute]
        weight, bias = dense @ old["hidden.weight"], dense @ old["hidden.bias"]
        if attribute == "current_arrays":
            bias = bias + erased.shift
        if attribute in ("momentum_vector", "m_t"):
            assert not any(bool(t.any()) for t in after.values())
            continue
        if attribute == "v_t":
            weight, bias = dense**2 @ old["hidden.weight"], dense**2 @ old["hidden.bias"]
            assert all(bool((t >= 0).all()) for t in after.values())
        assert_close(after["hidden.weight"], weight, atol=1e-6, rtol=1e-4)
        assert_close(after["hidden.bias"], bias, atol=1e-6, rtol=1e-4)
    assert attributes[-1] == "current_arrays"
    strategy.start(grid, result.arrays, num_rounds=1)
    assert fed.accuracy(strategy.store.latest()[1].state, 3) < 0.2


# --------------------------------------------------------------------------- interruptions
@pytest.mark.parametrize(
    "where",
    [after_phase("fisher"), after_phase("calibrated"), after_decision, after_phase("told")],
    ids=["fisher", "calibrated", "decided", "told"],
)
def test_a_deep_request_goes_on(where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "run"):
        fed.trained(tmp_path / name)[0].store.close()

    def run(name: str, network: fed.LocalGrid) -> Any:
        with RunStore(tmp_path / name) as store:
            outcome = forget(network, THREE, store, settings=DEEP)
            return outcome, {n: store.load(n).info.digest for n in sorted(store.kept())}

    whole, expected = run("whole", fed.grid())
    with monkeypatch.context() as m:
        where(m)
        assert killed(lambda: run("run", fed.grid()))
    network = fed.grid()
    outcome, got = run("run", network)
    assert got == expected
    assert outcome.committed
    assert outcome.update.digest == whole.update.digest
    assert outcome.message == whole.message
    assert not {"query.unlearn_statistics", "query.unlearn_fisher"} & {kind for kind, _ in network.log}


def test_a_refusal_leaves_all_as_it_was(tmp_path: Path) -> None:
    settings = UnlearnSettings.preset("deep", threshold=1e6)
    strategy, grid, result = deep(tmp_path, settings=settings, rounds=3)
    before, kept = result.arrays.copy(), {n: strategy.store.load(n).info for n in strategy.store.kept()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    if outcome.committed:  # erasing alone was enough
        pytest.fail(outcome.message)
    assert result.arrays == before
    assert {n: strategy.store.load(n).info for n in kept} == kept
    assert strategy.store.operations.all() == []
