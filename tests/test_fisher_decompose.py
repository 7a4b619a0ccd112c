"""Attention taken apart, against torch's own, and what is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fisher_watch import D, Watch, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fl_unlearn.fisher_decompose import decomposed

flag = st.booleans()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
    n=st.integers(1, 3),
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
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
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
