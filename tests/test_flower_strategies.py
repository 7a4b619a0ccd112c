"""The wrapped strategy gives bit for bit what the bare one gives, while nothing is forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    Result,
    Strategy,
)

from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.lineage import NodeKind
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import UnlearnError

COMMON: dict[str, Any] = {"min_available_nodes": fed.CLIENTS, "min_train_nodes": 4, "fraction_train": 0.8}


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**COMMON),
    "FedMedian": lambda: FedMedian(**COMMON),
    "DP": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(**COMMON), noise_multiplier=0.01, clipping_norm=5.0, num_sampled_clients=4
    ),
}
"""Three of different habits; `test_strategy_matrix` goes through all."""


def run(strategy: Strategy, rounds: int = 3) -> Result:
    random.seed(3)
    np.random.seed(3)
    return strategy.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=rounds)


def as_bytes(result: Result) -> dict[str, bytes]:
    return {n: a.data for n, a in result.arrays.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_bit_identical(name: str, tmp_path: Path) -> None:
    bare = run(STRATEGIES[name]())
    wrapper = UnlearningStrategy(STRATEGIES[name](), store=tmp_path, keep=KeepPolicy(client_updates=True))
    wrapped = run(wrapper)
    assert as_bytes(wrapped) == as_bytes(bare)
    assert wrapped.train_metrics_clientapp == bare.train_metrics_clientapp
    umig = wrapper.store.umig
    assert [n.round for n in umig.nodes(kind=NodeKind.AGGREGATE)] == [1, 2, 3]
    assert len(list(umig.nodes(kind=NodeKind.CLIENT_UPDATE))) == 12
    stored = wrapper.store.load("r0003-global").state
    assert {n: t.numpy().tobytes() for n, t in stored.items()} == {
        n: a.numpy().tobytes() for n, a in wrapped.arrays.items()
    }


def test_lineage_of_a_run(tmp_path: Path) -> None:
    strategy, _, _ = fed.trained(tmp_path, rounds=2, keep=KeepPolicy(client_updates=True))
    umig = strategy.store.umig
    assert umig.parents("r0002-client-1") == {"r0001-global": 1.0}
    assert umig.parents("r0001-client-4") == {"r0000-initial": 1.0}
    sizes = {i: len(fed.client_data(i)[1]) for i in range(fed.CLIENTS)}
    weights = umig.parents("r0002-global")
    assert weights == pytest.approx({f"r0002-client-{i}": n / sum(sizes.values()) for i, n in sizes.items()})
    node = umig.node("r0002-client-2")
    assert (node.owner, node.examples, node.round) == ("2", sizes[2], 2)
    assert "train_loss" in node.metadata["metrics"]
    assert strategy.store.kept() == {n.name for n in umig}


def test_the_update_is_recorded_as_it_came(tmp_path: Path) -> None:
    """FedMedian empties replies and the DP wrapper clips them: what is kept must be what the client sent."""
    strategies = {"a": STRATEGIES["FedMedian"](), "b": STRATEGIES["DP"](), "c": STRATEGIES["FedAvg"]()}
    kept = {}
    for key, inner in strategies.items():
        wrapper = UnlearningStrategy(inner, store=tmp_path / key, keep=KeepPolicy(client_updates=True))
        run(wrapper, rounds=1)
        kept[key] = {n: wrapper.store.load(n).state for n in wrapper.store.kept() if "client" in n}
    assert kept["a"].keys() == kept["b"].keys() == kept["c"].keys()
    for name, state in kept["c"].items():
        for key in "ab":
            for tensor in state:
                assert state[tensor].equal(kept[key][name][tensor])


def test_a_failing_round_is_not_recorded(tmp_path: Path) -> None:
    class Failing(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if server_round == 2:
                raise RuntimeError("boom")
            return super().aggregate_train(server_round, replies)

    wrapper = UnlearningStrategy(Failing(**COMMON), store=tmp_path)
    with pytest.raises(RuntimeError, match="boom"):
        run(wrapper)
    assert wrapper.store.umig.last_round() == 1
    assert wrapper.store.kept() == {"r0000-initial", "r0001-global"}


def test_a_round_without_aggregate(tmp_path: Path) -> None:
    class Lossy(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return (None, None) if server_round == 2 else super().aggregate_train(server_round, replies)

    wrapper = UnlearningStrategy(Lossy(**COMMON), store=tmp_path)
    run(wrapper)
    umig = wrapper.store.umig
    assert "r0002-global" not in umig
    assert all(p == "r0001-global" for c in umig.parents("r0003-global") for p in umig.parents(c))


def test_failed_clients_are_not_parents(tmp_path: Path) -> None:
    apps = {100 + i: fed.app() for i in range(fed.CLIENTS)}

    def tamper(request: Any, reply: Any) -> Any:
        from flwr.app import Error, Message

        if request.metadata.message_type == "train" and request.metadata.dst_node_id == 101:
            return Message(Error(code=2, reason="out of memory"), reply_to=request)
        if request.metadata.message_type == "train" and request.metadata.dst_node_id == 103:
            return None
        return reply

    wrapper = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    wrapper.start(fed.LocalGrid(apps, tamper), ArrayRecord(fed.build_model().state_dict()), num_rounds=1)
    assert set(wrapper.store.umig.parents("r0001-global")) == {f"r0001-client-{i}" for i in (0, 2, 4)}


def test_inner_attributes_and_bad_inner(tmp_path: Path) -> None:
    wrapper = UnlearningStrategy(fed.fedavg(fraction_train=0.7), store=tmp_path)
    assert wrapper.fraction_train == 0.7
    with pytest.raises(AttributeError):
        _ = wrapper.no_such_thing
    with pytest.raises(UnlearnError, match=r"wraps a flwr\.serverapp\.strategy\.Strategy, got str"):
        UnlearningStrategy("FedAvg", store=tmp_path)  # type: ignore[arg-type]


def test_projects_without_the_plugin_still_train_and_are_recorded(tmp_path: Path) -> None:
    wrapper = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    network = fed.grid(make=fed.plain_app)
    wrapper.start(network, ArrayRecord(fed.build_model().state_dict()), num_rounds=2)
    assert wrapper.store.umig.owners() == [f"node-{100 + i}" for i in range(fed.CLIENTS)]


def test_the_same_seed_gives_the_same_store(tmp_path: Path) -> None:
    a, _, first = fed.trained(tmp_path / "a", rounds=2)
    b, _, second = fed.trained(tmp_path / "b", rounds=2)
    assert as_bytes(first) == as_bytes(second)
    assert [n.digest for n in a.store.umig] == [n.digest for n in b.store.umig]


def test_replies_in_any_order_give_the_same_result(tmp_path: Path) -> None:
    class Shuffled(fed.LocalGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            return list(super().pull_messages(message_ids))[::-1]

    results = []
    for i, kind in enumerate((fed.LocalGrid, Shuffled)):
        wrapper = UnlearningStrategy(fed.fedavg(), store=tmp_path / str(i), deterministic=True)
        network = kind({100 + i: fed.app() for i in range(fed.CLIENTS)})
        results.append(wrapper.start(network, ArrayRecord(fed.build_model().state_dict()), num_rounds=2))
    assert as_bytes(results[0]) == as_bytes(results[1])
