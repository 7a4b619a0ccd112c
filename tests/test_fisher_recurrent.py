"""Recurrent layers and cells taken apart, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fisher_watch import D, Watch, compare, tensors, value_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fl_unlearn.fisher_decompose import decomposed

flag = st.booleans()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 2}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


def initial(model: nn.RNNBase, n: int) -> Any:
    k = model.num_layers * (2 if model.bidirectional else 1)
    h = torch.randn(k, n, model.proj_size or model.hidden_size, dtype=D, requires_grad=True)
    if not isinstance(model, nn.LSTM):
        return h
    return h, torch.randn(k, n, model.hidden_size, dtype=D, requires_grad=True)


@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    bidirectional=flag,
    bias=flag,
    batch_first=flag,
    states=flag,
    n=st.integers(0, 3),
    steps=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_recurrent_layers(
    kind: Any,
    layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    states: bool,
    n: int,
    steps: int,
) -> None:
    torch.manual_seed(1)
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first, **kind[1]}
    model = kind[0](3, 4, layers, dtype=D, **options).eval()
    x = torch.randn(*((n, steps) if batch_first else (steps, n)), 3, dtype=D, requires_grad=True)
    hx = initial(model, n) if states else None
    watch = compare(model, lambda: model(x, hx), [x, *tensors(hx)])
    assert all(len(t) == n and t.shape[1] == steps for t, *_ in watch.seen)
    parts = 3 if model.proj_size else 2
    assert len(watch.seen) == parts * layers * (2 if bidirectional else 1)
    assert not watch.others
    assert not watch.unseen


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0].__name__}{k[1] or ''}")
def test_recurrent_layers_without_a_batch(kind: Any) -> None:
    model = kind[0](3, 4, 2, dtype=D, **kind[1]).eval()
    x = torch.randn(5, 3, dtype=D, requires_grad=True)
    compare(model, lambda: model(x), [x])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0].__name__}{k[1] or ''}")
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lengths", [[2, 5, 1, 5, 2], [5, 4, 4, 2, 1], [3]])
@pytest.mark.parametrize("states", [True, False])
def test_packed_sequences(kind: Any, bidirectional: bool, lengths: list[int], states: bool) -> None:
    first = kind[0](3, 4, 2, bidirectional=bidirectional, batch_first=True, dtype=D, **kind[1])
    size = (first.proj_size or 4) * (2 if bidirectional else 1)
    model = nn.ModuleList([first, kind[0](size, 4, dtype=D, **kind[1])]).eval()
    x = torch.randn(len(lengths), 7, 3, dtype=D, requires_grad=True)
    hx = initial(first, len(lengths)) if states else None
    in_order = lengths == sorted(lengths, reverse=True)

    def forward() -> Any:
        packed = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=in_order)
        middle, last = model[0](packed, hx)
        out, last2 = model[1](middle)
        return pad_packed_sequence(middle), last, out.data, pad_packed_sequence(out), last2

    watch = compare(model, forward, [x, *tensors(hx)])
    assert not watch.others
    assert not watch.unseen
    for met, *_ in watch.seen:  # the length before packing, whatever the batch's longest is
        assert met.shape[:2] == (len(lengths), 7)
    for row, kept, length in zip(watch.seen[0][0], x, lengths, strict=True):  # samples in their own order
        torch.testing.assert_close(row[:length], kept[:length])
        assert not row[length:].any()


def test_packed_sequences_of_unknown_order_are_left_alone() -> None:
    class Scaled(nn.LSTM):
        def forward(self, x: PackedSequence) -> Any:  # type: ignore[override]
            return super().forward(PackedSequence(2 * x.data, x.batch_sizes))

    model = Scaled(3, 4, dtype=D).eval()
    packed = pack_padded_sequence(torch.randn(4, 2, 3, dtype=D), [4, 2])
    want = model(packed)
    with Watch() as watch, decomposed(model):
        got = model(packed)
        bare = nn.LSTM.forward(model, PackedSequence(2 * packed.data, packed.batch_sizes))
    torch.testing.assert_close((got, bare), (want, want), rtol=0, atol=0)
    assert not watch.seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k)]
)
def test_cells(kind: Any, bias: bool) -> None:
    cell = kind(3, 4, bias=bias, dtype=D)
    x = torch.randn(5, 2, 3, dtype=D, requires_grad=True)

    def forward() -> Any:
        state = None
        for step in x:
            state = cell(step, state)
        return state

    watch = compare(cell, forward, [x])
    assert not watch.others
    assert not watch.unseen


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0].__name__}{k[1] or ''}")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_in_lower_precision(kind: Any, dtype: torch.dtype, rtol: float) -> None:
    model = kind[0](3, 4, 2, bidirectional=True, dtype=dtype, **kind[1]).eval()
    x = torch.randn(6, 3, 3, dtype=dtype, requires_grad=True)
    compare(model, lambda: model(x), [x], rtol)


def test_recurrent_layers_under_autocast_keep_full_precision() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3), nn.LSTM(3, 4, 2)]).eval()
    x = torch.randn(6, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        h = layers[0](x)
        with decomposed(layers):
            out, _ = layers[1](h)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(out, layers[1](h.float())[0])


def test_gradients_can_be_taken_twice() -> None:
    model = nn.LSTM(3, 4, 2, proj_size=2, dtype=D).eval()
    x = torch.randn(5, 2, 3, dtype=D, requires_grad=True)
    with decomposed(model):
        out = model(x)
    first, second = (torch.autograd.grad(value_of(out), x, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_only_the_last_states_are_used() -> None:
    model = nn.LSTM(3, 4, dtype=D).eval()
    x = torch.randn(5, 2, 3, dtype=D, requires_grad=True)
    compare(model, lambda: model(x)[1][1], [x])
    compare(model, lambda: model(x)[1][0], [x])
