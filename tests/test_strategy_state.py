"""What a strategy remembers comes back from bytes as it was, and nothing else does."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedXgbBagging
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_unlearn.flower import strategy_state
from fl_unlearn.types import SIGNATURE_DTYPES, CorruptCheckpointError, ModelMismatchError

DTYPES = st.sampled_from(["<f4", "<f8", "<f2", ">i4", "|u1", "|b1", "<c8", "<i8"])
NDARRAYS = DTYPES.flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    dtype = SIGNATURE_DTYPES[draw(st.sampled_from(sorted(SIGNATURE_DTYPES)))]
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return (torch.randn(shape) * 50).to(dtype)


RECORDS = st.dictionaries(st.text(max_size=5), NDARRAYS.map(Array), max_size=3).map(ArrayRecord)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
SCALARS = st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True), np.float64("nan")])
LEAVES = PLAIN | NDARRAYS | NDARRAYS.map(Array) | tensors() | RECORDS | SCALARS
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()
        assert got.flags.writeable
    elif isinstance(expected, torch.Tensor):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert bits(got) == bits(expected)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, dict | ArrayRecord):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, float | np.generic):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
    else:
        assert got == expected


def memory_of(strategy: Any, **kwargs: Any) -> strategy_state.Memory:
    data = strategy_state.write(strategy, kwargs.pop("before", {}), live=None, with_model=False)
    assert data is not None
    return strategy_state.read(data, "test", **kwargs)[0]


def again(strategy: Any) -> FedAvg:
    fresh = FedAvg()
    strategy_state.restore(fresh, memory_of(strategy))
    return fresh


@given(VALUES)
@example([np.zeros((0, 3)), torch.zeros(()), b"", (), {}, OrderedDict()])
def test_any_value_comes_back(value: Any) -> None:
    strategy = FedAvg()
    strategy.memory = value  # type: ignore[attr-defined]
    assert_same(again(strategy).memory, value)  # type: ignore[attr-defined]


def test_what_is_one_object_stays_one() -> None:
    strategy: Any = FedAvg()
    shared = np.arange(3.0)
    strategy.a, strategy.b = [shared], {"x": shared}
    strategy.c = strategy.a
    strategy.loop = [1]
    strategy.loop.append(strategy.loop)
    got: Any = again(strategy)
    assert got.a[0] is got.b["x"]
    assert got.c is got.a
    assert got.loop[1] is got.loop


def test_the_model_itself_is_not_kept_twice() -> None:
    strategy: Any = FedAvg()
    live = ArrayRecord({"w": Array(np.arange(1000.0))})
    strategy.current_arrays = live
    alone = strategy_state.write(strategy, {}, live=live, with_model=False)
    whole = strategy_state.write(strategy, {}, live=live, with_model=True)
    assert alone is not None
    assert whole is not None
    assert len(alone) < 2000 < 8000 < len(whole) < 12000
    other = ArrayRecord()
    memory, model = strategy_state.read(alone, "test", live=other)
    assert (memory.attributes["current_arrays"], model) == (other, None)
    assert memory.attributes["current_arrays"] is other
    memory, model = strategy_state.read(whole, "test")
    assert memory.attributes["current_arrays"] is model
    assert model == live


def test_configuration_is_not_kept_and_what_changed_is() -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(FedXgbBagging(fraction_train=0.5), 0.1, 1.0, 3)
    before = strategy_state.baseline(strategy)
    empty = ArrayRecord()
    strategy.current_arrays = empty  # as it was constructed
    assert strategy_state.write(strategy, before, live=None, with_model=False) is None
    strategy.clipping_norm = 7.0
    inner: Any = strategy.strategy
    inner.current_bst, inner.fraction_train = b"trees", 0.25
    memory = memory_of(strategy, before=before)
    assert memory.attributes.keys() == {"clipping_norm", "strategy"}
    assert memory.attributes["strategy"].attributes == {"current_bst": b"trees", "fraction_train": 0.25}
    fresh = DifferentialPrivacyServerSideFixedClipping(FedXgbBagging(min_train_nodes=9), 0.2, 1.0, 3)
    strategy_state.restore(fresh, memory)
    now: Any = fresh.strategy
    assert (fresh.noise_multiplier, fresh.clipping_norm, now.min_train_nodes) == (0.2, 7.0, 9)
    assert (now.current_bst, now.fraction_train) == (b"trees", 0.25)


def test_rewriting_gives_the_same_bytes() -> None:
    strategy: Any = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3)
    live = ArrayRecord({"w": Array(np.arange(4.0))})
    strategy.current_arrays, strategy.strategy.momentum = live, [np.ones(4), torch.ones(2)]
    strategy.clipping_norm, strategy.strategy.odd = 3.0, object()
    for with_model in (True, False):
        data = strategy_state.write(strategy, {}, live=live, with_model=with_model)
        assert data is not None
        memory, model = strategy_state.read(data, "test", live=live)
        now = model if with_model else live
        assert strategy_state.write(memory, {}, live=now, with_model=with_model) == data


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        [np.ones(2), lambda: 1],
        np.array([object()]),
        torch.nn.Linear(2, 2),
        {"a": {"b": pytest}},
        torch.eye(2).to_sparse(),
        {frozenset(): 1},
    ],
)
def test_what_is_not_understood_is_left_alone_and_named(value: Any) -> None:
    strategy: Any = FedAvg()
    strategy.memory, strategy.count, strategy.arrays = value, 3, np.ones(2)
    memory = memory_of(strategy)
    assert memory.unsaved == ["FedAvg.memory"]
    assert "memory" not in memory.attributes
    assert memory.attributes["count"] == 3
    assert memory.attributes["arrays"].tolist() == [1, 1]


def test_a_list_without_end_is_not_understood() -> None:
    strategy: Any = FedAvg()
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    strategy.memory = deep
    assert memory_of(strategy).unsaved == ["FedAvg.memory"]
    while deep:  # undone by hand: freeing it recursively would exhaust the stack
        deep = deep[0]


def test_nothing_is_restored_to_another_strategy() -> None:
    strategy: Any = DifferentialPrivacyServerSideFixedClipping(FedXgbBagging(), 0.1, 1.0, 3)
    strategy.strategy.current_bst, strategy.clipping_norm = b"trees", 9.0
    memory = memory_of(strategy)
    other = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3)
    for target in (other, FedXgbBagging()):
        before = dict(vars(target))
        with pytest.raises(ModelMismatchError, match="what the server remembers is that of"):
            strategy_state.restore(target, memory)
        assert dict(vars(target)) == before


def test_bytes_from_elsewhere_are_refused(tmp_path: Path) -> None:
    strategy: Any = FedAvg()
    strategy.memory = [np.arange(5), ArrayRecord({"w": Array(np.ones(3))}), torch.ones(3), np.float32(1)]
    data = strategy_state.write(strategy, {}, live=None, with_model=False)
    assert data is not None
    others = [b"", b"x" * 100, data[:-1], pickle.dumps(1), data.replace(b"recovery/1", b"recovery/9")]
    others += [
        data.replace(b"<i8", b"|O8"),
        data.replace(b'numpy\\"', b'other\\"'),
        data.replace(b"[5]", b"[6]"),
    ]
    for bad in others:
        assert bad != data
        with pytest.raises(
            CorruptCheckpointError, match=r"F is no snapshot of a strategy .* Delete it to go on"
        ):
            strategy_state.read(bad, "F")


@given(st.data())
def test_damage_is_refused_or_harmless(data: Any) -> None:
    strategy: Any = FedAvg()
    strategy.memory = {"a": np.arange(5), "b": [torch.ones(3), b"x", "y", 1.5]}
    good = strategy_state.write(strategy, {}, live=None, with_model=False)
    assert good is not None
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    try:
        memory, _ = strategy_state.read(bytes(bad), "F")
    except CorruptCheckpointError:
        return
    assert isinstance(memory, strategy_state.Memory)
