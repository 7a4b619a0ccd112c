"""Squared gradients by weights of linear layers and convolutions against a loop over samples."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_contract import conv_gradient, linear_gradient
from torch import Tensor

from fl_unlearn.fisher_contract import ConvUse, LinearUse
from fl_unlearn.fisher_uses import Use

BUDGET = 1 << 20


def check(use: Use, per_sample: list[Tensor], parts: list[Tensor], budget: int, rtol: float = 1e-5) -> None:
    totals = [torch.rand(use.shape, dtype=torch.float64) for _ in parts]
    before = [t.clone() for t in totals]
    use.add_squares(list(zip(parts, totals, strict=True)), budget)
    for rows, total, start in zip(parts, totals, before, strict=True):
        expected = sum((per_sample[i] ** 2 for i in rows.tolist()), torch.zeros_like(total))
        got = total - start
        scale = float(expected.max()) if expected.numel() else 0.0
        torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * scale + 1e-14)
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= rtol or scale == 0
    everything = torch.arange(len(per_sample))
    grads = use.gradients(everything).double()
    assert grads.shape == (len(per_sample), *use.shape)
    for i, g in enumerate(per_sample):
        torch.testing.assert_close(grads[i], g, rtol=1e-5, atol=1e-5 * float(g.abs().max()))


def split(n: int, ways: int, seed: int) -> list[Tensor]:
    """Some rows in parts, unordered, some in none and some parts possibly empty; one way: all, in order."""
    if ways == 1:
        return [torch.arange(n)]
    gen = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, ways + 1, (n,), generator=gen)
    order = torch.randperm(n, generator=gen)
    return [order[owner[order] == w] for w in range(ways)]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    middle=st.lists(st.integers(0, 4), max_size=2),
    k=st.integers(1, 6),
    o=st.integers(1, 6),
    ways=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    budget=st.sampled_from([1, 1000, BUDGET]),
    seed=st.integers(0, 99),
)
def test_linear(n, middle, k, o, ways, dtype, budget, seed):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *middle, k, generator=gen).to(dtype)
    g = torch.randn(o, *middle, n, generator=gen).to(dtype).transpose(0, -1)
    per_sample = [linear_gradient(x[i], g[i]) for i in range(n)]
    check(LinearUse(x, g), per_sample, split(n, ways, seed), budget)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_conv(data, seed):
    dims = data.draw(st.integers(1, 3))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    stride = data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    dilation = data.draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    padding = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=dims, max_size=dims)
    )
    size = [
        max(1, d * (k - 1) + 1 - a - b) + data.draw(st.integers(0, 4))
        for k, d, (a, b) in zip(kernel, dilation, padding, strict=True)
    ]
    out = [
        (s + a + b - d * (k - 1) - 1) // st_ + 1
        for s, k, d, (a, b), st_ in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    groups = data.draw(st.integers(1, 3))
    c, o = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    n = data.draw(st.integers(0, 6))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    budget = data.draw(st.sampled_from([1, 1000, BUDGET]))
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, groups * c, *size, generator=gen).to(dtype)
    g = torch.randn(n, groups * o, *out, generator=gen).to(dtype)
    if dims == 2 and data.draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
        g = g.to(memory_format=torch.channels_last)
    shape = (groups * o, c, *kernel)
    per_sample = [conv_gradient(x[i], g[i], shape, stride, padding, dilation, groups) for i in range(n)]
    use = ConvUse(x, g, shape, stride, padding, dilation, groups)
    check(use, per_sample, split(n, data.draw(st.integers(1, 3)), seed), budget)
