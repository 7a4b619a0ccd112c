"""Recurrent layers and attention taken apart, against torch's own, and what a watcher sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from fl_unlearn.fisher_decompose import decomposed
from fl_unlearn.fisher_recurrent import linear_elsewhere

Forward = Callable[..., Any]
D = torch.float64
flag = st.booleans()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Watch(TorchFunctionMode):
    """Keeps input, weight, bias and output of every ``linear``, and the names of what else takes a parameter.

    ``unseen`` are the parameters that no ``linear`` took.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor | None, Tensor]] = []
        self.others: set[str] = set()
        self.unseen: list[nn.Parameter] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (functional.linear, linear_elsewhere):
            self.seen.append((*args, *[None] * (3 - len(args)), out))
        elif func.__name__ != "__get__" and any(isinstance(t, nn.Parameter) for t in tensors((args, kwargs))):
            self.others.add(func.__name__)
        return out


def tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for v in x:
            yield from tensors(v)
    elif isinstance(x, dict):
        yield from tensors(list(x.values()))


def value_of(out: Any) -> Tensor:
    """One number that depends on everything that was returned."""
    torch.manual_seed(3)
    return sum((t.double() * torch.randn(t.shape, dtype=D)).sum() for t in tensors(out))


def compare(model: nn.Module, forward: Forward, inputs: list[Tensor], rtol: float = 1e-9) -> Watch:
    """Outputs, gradients by inputs and by parameters; and the parameters' as a watcher can compute them."""
    by = [t for t in inputs if t.requires_grad] + list(model.parameters())
    want = forward()
    want_grads = torch.autograd.grad(value_of(want), by, materialize_grads=True, allow_unused=True)
    with Watch() as watch, decomposed(model):
        got = forward()
    value = value_of(got)
    close = {"rtol": rtol, "atol": rtol}
    torch.testing.assert_close(got, want, **close)
    got_grads = torch.autograd.grad(value, by, materialize_grads=True, allow_unused=True, retain_graph=True)
    torch.testing.assert_close(got_grads, want_grads, **close)
    of_outputs = torch.autograd.grad(
        value, [out for *_, out in watch.seen], materialize_grads=True, allow_unused=True
    )
    grads: dict[int, Tensor] = {}
    for (x, weight, bias, _), g in zip(watch.seen, of_outputs, strict=True):
        for parameter, grad in (
            (weight, torch.einsum("...o,...i->oi", g, x)),
            (bias, g.flatten(0, -2).sum(0)),
        ):
            if parameter is not None:
                _add(grads, model, parameter, grad.detach())
    for p, want_grad in zip(by, want_grads, strict=True):
        if id(p) in grads:
            torch.testing.assert_close(grads[id(p)], want_grad, **close)
    watch.unseen = [p for p in model.parameters() if id(p) not in grads]
    return watch


def _add(grads: dict[int, Tensor], model: nn.Module, parameter: Tensor, grad: Tensor) -> None:
    """To a parameter, or to the rows of it that ``parameter`` is a view of."""
    for p in model.parameters():
        if p.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            first = (parameter.storage_offset() - p.storage_offset()) // p.stride(0)
            grads.setdefault(id(p), torch.zeros_like(p))[first : first + len(parameter)] += grad


# --------------------------------------------------------------------------- recurrent layers
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
    class Bare(nn.LSTM):
        def forward(self, data: Tensor, sizes: Tensor) -> Any:
            h = torch.zeros(1, int(sizes[0]), 4, dtype=D)
            return torch.lstm(data, sizes, (h, h), self._flat_weights, True, 1, 0.0, False, False)

    model = Bare(3, 4, dtype=D).eval()
    packed = pack_padded_sequence(torch.randn(4, 2, 3, dtype=D), [4, 2])
    want = model(packed.data, packed.batch_sizes)
    with Watch() as watch, decomposed(model):
        got = model(packed.data, packed.batch_sizes)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert watch.others == {"lstm"}


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


# --------------------------------------------------------------------------- attention
@given(
    batch_first=flag,
    separate=flag,
    bias=flag,
    bias_kv=flag,
    zero=flag,
    weights=flag,
    average=flag,
    inputs=st.sampled_from(["self", "memory", "three"]),
    mask=st.sampled_from([None, "bool", "float", "each", "causal"]),
    padding=st.sampled_from([None, "bool", "float"]),
    n=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_attention(
    batch_first: bool,
    separate: bool,
    bias: bool,
    bias_kv: bool,
    zero: bool,
    weights: bool,
    average: bool,
    inputs: str,
    mask: str | None,
    padding: str | None,
    n: int,
) -> None:
    torch.manual_seed(1)
    sizes = {"kdim": 3, "vdim": 5} if separate else {}
    options = {
        "bias": bias,
        "add_bias_kv": bias_kv,
        "add_zero_attn": zero,
        "batch_first": batch_first,
        **sizes,
    }
    model = nn.MultiheadAttention(4, 2, dtype=D, **options).eval()
    for p in model.parameters():
        nn.init.normal_(p)
    length, other = (3, 3) if inputs == "self" else (3, 4)
    shape = (lambda k, size: (n, k, size)) if batch_first else (lambda k, size: (k, n, size))
    query = torch.randn(shape(length, 4), dtype=D, requires_grad=True)
    key = query if inputs == "self" else torch.randn(shape(other, 4), dtype=D, requires_grad=True)
    value = key if inputs != "three" else torch.randn(shape(other, 4), dtype=D, requires_grad=True)
    if separate:
        key = torch.randn(shape(other, 3), dtype=D, requires_grad=True)
        value = torch.randn(shape(other, 5), dtype=D, requires_grad=True)
    hidden = torch.rand(length, other) < 0.3
    hidden[:, 0] = False  # a row with nothing left gives NaN
    causal = torch.triu(torch.ones(length, other, dtype=torch.bool), 1)
    attn_mask = {
        None: None,
        "bool": hidden,
        "float": torch.randn(length, other, dtype=D),
        "each": torch.randn(2 * n, length, other, dtype=D),
        "causal": causal,
    }[mask]
    gone = torch.rand(n, other) < 0.3
    gone[:, 0] = False
    padded = {None: None, "bool": gone, "float": torch.randn(n, other, dtype=D)}[padding]

    def forward() -> Any:
        return model(
            query,
            key,
            value,
            key_padding_mask=padded,
            need_weights=weights,
            attn_mask=attn_mask,
            average_attn_weights=average,
            is_causal=mask == "causal",
        )

    watch = compare(model, forward, list({id(t): t for t in (query, key, value)}.values()))
    assert all(len(t) == n for t, *_ in watch.seen)
    assert watch.others <= {"split", "chunk", "expand"}
    assert len(watch.unseen) == (2 if bias_kv else 0)
    if inputs == "self" and not separate:
        assert len(watch.seen) == 2


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_attention_without_a_batch(same: bool, weights: bool) -> None:
    model = nn.MultiheadAttention(4, 2, dtype=D).eval()
    x = torch.randn(3, 4, dtype=D, requires_grad=True)
    y = x if same else torch.randn(3, 4, dtype=D, requires_grad=True)
    gone = torch.tensor([False, True, False])
    compare(model, lambda: model(x, y, y, gone, weights), [x] if same else [x, y])


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_takes_no_fast_path(batch_first: bool) -> None:
    model = nn.Transformer(4, 2, 2, 2, 8, batch_first=batch_first, dtype=D).eval()
    source, target = (torch.randn(3, 3, 4, dtype=D, requires_grad=True) for _ in range(2))
    gone = torch.tensor([[False, False, True]] * 3)
    watch = compare(model, lambda: model(source, target, src_key_padding_mask=gone), [source, target])
    assert len(watch.seen) == 2 * 4 + 2 * 7
    with torch.no_grad(), Watch() as watch, decomposed(model):
        model.encoder(source, src_key_padding_mask=gone)
    assert len(watch.seen) == 2 * 4


# --------------------------------------------------------------------------- what is left as it is
@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.LSTM(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)),
        lambda: (nn.MultiheadAttention(4, 2, dropout=0.5), *[torch.randn(5, 2, 4)] * 3),
    ],
)
def test_dropout_in_training_is_left_to_torch(make: Callable[[], Any]) -> None:
    model, *inputs = make()
    torch.manual_seed(2)
    want = model(*inputs)
    torch.manual_seed(2)
    with Watch() as watch, decomposed(model):
        got = model(*inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert watch.others


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.LSTM(3, 4)(torch.randn(0, 2, 3)),
        lambda: nn.LSTM(3, 4)(torch.randn(5, 2, 7)),
        lambda: nn.GRU(3, 4)(torch.randn(5, 2, 3), torch.randn(1, 3, 4)),
        lambda: nn.MultiheadAttention(4, 2)(*[torch.randn(5, 2, 6)] * 3),
        lambda: nn.MultiheadAttention(4, 2)(*[torch.randn(5, 2, 4)] * 3, attn_mask=torch.zeros(5, 1)),
        lambda: nn.MultiheadAttention(4, 2)(*[torch.randn(5, 2, 4)] * 3, key_padding_mask=torch.zeros(1, 5)),
        lambda: nn.MultiheadAttention(4, 2)(*[torch.randn(5, 2, 4)] * 3, is_causal=True),
        lambda: nn.MultiheadAttention(4, 2)(torch.randn(5, 4), *[torch.randn(5, 2, 4)] * 2),
    ],
)
def test_errors_are_those_of_torch(call: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, AssertionError, ValueError)) as want:
        call()
    with pytest.raises(type(want.value)) as got, decomposed(nn.Identity()):
        call()
    assert str(got.value) == str(want.value)


def test_nothing_is_left_behind() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.rnn(x)
            raise KeyError("after the layer")

    model = Failing()
    before = {n: set(vars(m)) for n, m in model.named_modules()}
    with pytest.raises(KeyError), decomposed(model):
        model(torch.randn(5, 2, 3))
    assert {n: set(vars(m)) for n, m in model.named_modules()} == before
    assert not model.rnn._forward_pre_hooks
    with Watch() as watch:
        model.rnn(torch.randn(5, 2, 3))
    assert "lstm" in watch.others


def test_subclasses_with_a_forward_of_their_own() -> None:
    class Doubled(nn.GRU):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * super().forward(x)[0]

    class Own(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.tanh(functional.linear(x, self.weight_ih_l0))

    for model in (Doubled(3, 4, dtype=D), Own(3, 4, dtype=D)):
        x = torch.randn(5, 2, 3, dtype=D, requires_grad=True)
        compare(model, lambda: model(x), [x])  # noqa: B023
