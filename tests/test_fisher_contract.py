"""Squared gradients by weights of linear layers and convolutions against a loop over samples."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_contract import conv_gradient, linear_gradient
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fl_unlearn.fisher import contract as fisher_contract
from fl_unlearn.fisher.contract import ConvUse, LinearUse
from fl_unlearn.fisher.uses import Use

BUDGET = 1 << 24
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WAYS = ["chosen", "pairs", "products", "gradients"]


def add_squares(
    use: Use, parts: list[Tensor], budget: int = BUDGET, way: str = "chosen", start: float = 0.5
) -> list[Tensor]:
    """What comes on top of ``start`` in each total, by one of the ways wherever there is a choice."""
    totals = [torch.full(use.shape, start, dtype=torch.float64) for _ in parts]
    cost = {"pairs": 0.0, "products": 0.0, "gradients": 1e99}.get(way)
    limits = {"pairs": {"_PAIRS": 99}, "products": {"_PAIRS": 0, "_BLOCK": {"cpu": 40, "cuda": 40}}}
    with (
        patch.object(ConvUse, "_cost_of_taps", ConvUse._cost_of_taps if cost is None else lambda *_: cost),
        patch.multiple(fisher_contract, **limits.get(way, {"_PAIRS": fisher_contract._PAIRS})),
    ):
        use.add_squares(list(zip(parts, totals, strict=True)), budget)
    return [t - start for t in totals]


def check(use: Use, per_sample: list[Tensor], parts: list[Tensor], budget: int, way: str) -> None:
    grads = use.gradients(torch.arange(len(per_sample)))
    assert grads.shape == (len(per_sample), *use.shape)
    assert grads.dtype in (torch.float32, torch.float64)
    for got, expected in zip(grads, per_sample, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5 * largest(expected))
    for rows, got in zip(parts, add_squares(use, parts, budget, way), strict=True):
        expected = sum(
            (per_sample[i] ** 2 for i in rows.tolist()), torch.zeros(use.shape, dtype=torch.float64)
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * largest(expected) + 1e-15)
        assert float((got - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-15


def largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def split(n: int, parts: int, seed: int) -> list[Tensor]:
    """One part: all rows in order. More: rows out of order, some in no part, some parts perhaps empty."""
    if parts == 1:
        return [torch.arange(n)]
    gen = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, parts + 1, (n,), generator=gen)
    order = torch.randperm(n, generator=gen)
    return [order[owner[order] == i] for i in range(parts)]


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 9),
    middle=st.lists(st.integers(0, 4), max_size=2),
    k=st.integers(0, 6),
    o=st.integers(1, 6),
    parts=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    way=st.sampled_from(WAYS[:3]),
    budget=st.sampled_from([1, 1000, BUDGET]),
    seed=st.integers(0, 99),
)
def test_linear(n, middle, k, o, parts, dtype, way, budget, seed):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *middle, k, generator=gen).to(dtype)
    g = torch.randn(o, *middle, n, generator=gen).to(dtype).transpose(0, -1)
    per_sample = [linear_gradient(x[i], g[i]) for i in range(n)]
    check(LinearUse(x, g), per_sample, split(n, parts, seed), budget, way)


@st.composite
def convolutions(draw: Callable) -> tuple[Tensor, Tensor, dict]:
    dims = draw(st.integers(1, 3))

    def per_dim(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=dims, max_size=dims))

    kernel, stride, dilation = (per_dim(st.integers(1, high)) for high in (3, 3, 2))
    padding = per_dim(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 - a - b for k, d, (a, b) in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, r) + draw(st.integers(0, 4)) for r in reach]
    out = [(s - r) // step + 1 for s, r, step in zip(size, reach, stride, strict=True)]
    groups, c, o = (draw(st.integers(1, 3)) for _ in range(3))
    n, seed = draw(st.integers(0, 6)), draw(st.integers(0, 99))
    gen = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn(n, groups * c, *size, generator=gen).to(dtype)
    g = torch.randn(n, groups * o, *out, generator=gen).to(dtype)
    if dims == 2 and draw(st.booleans()):
        x, g = x.to(memory_format=torch.channels_last), g.to(memory_format=torch.channels_last)
    if draw(st.booleans()):
        x, g = x.repeat(2, *[1] * (dims + 1))[::2], g[:, :1].expand_as(g)  # strides that skip and repeat
        x = x[:n]
    shape = (groups * o, c, *kernel)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, g, {"weight_shape": shape, **how}


@settings(max_examples=150, deadline=None)
@given(
    case=convolutions(),
    parts=st.integers(1, 3),
    way=st.sampled_from(WAYS),
    budget=st.sampled_from([1, 1000, BUDGET]),
)
def test_conv(case, parts, way, budget):
    x, g, how = case
    per_sample = [conv_gradient(x[i], g[i], **how) for i in range(len(x))]
    check(ConvUse(x, g, **how), per_sample, split(len(x), parts, len(x)), budget, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_padding_may_be_one_number(way, size):
    gen = torch.Generator().manual_seed(size)
    x, g = (torch.randn(5, c, size, size, generator=gen) for c in (4, 6))
    how = {"weight_shape": (6, 2, 3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 2}
    per_sample = [conv_gradient(x[i], g[i], **how, padding=[(1, 1), (1, 1)]) for i in range(5)]
    check(ConvUse(x, g, **how, padding=(1, 1)), per_sample, split(5, 2, 0), BUDGET, way)


def uses(n: int, positions: int, k: int, o: int, scale: float = 1.0) -> dict[str, Use]:
    """The same products as a linear layer's and as a convolution's."""
    gen = torch.Generator().manual_seed(n + positions)
    x = torch.randn(n, positions, k, generator=gen)
    g = torch.randn(n, positions, o, generator=gen) * scale
    conv = ConvUse(x.mT, g.mT, (o, k, 1), [1], [0], [1], 1)
    return {"linear": LinearUse(x, g), "conv": conv}


def squares(use: Use) -> Tensor:
    assert isinstance(use, LinearUse)
    return (use.g.double().mT @ use.x.double()).square().sum(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_many_samples_do_not_lose_precision(kind, way):
    both = uses(3000, 3, 5, 4)
    got = add_squares(both[kind], [torch.arange(3000)], way=way)[0]
    torch.testing.assert_close(got.view(4, 5), squares(both["linear"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_squares_beyond_the_range_of_float32(kind, way, scale):
    both = uses(4, 2, 3, 2, scale)
    got = add_squares(both[kind], [torch.arange(4)], way=way, start=0.0)[0]
    torch.testing.assert_close(got.view(2, 3), squares(both["linear"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_cancelling_positions(kind, way):
    """Positions whose products nearly cancel: what is left is as exact as float32 products allow."""
    gen = torch.Generator().manual_seed(0)
    x, g = torch.randn(6, 1, 3, generator=gen), torch.randn(6, 1, 2, generator=gen)
    x = torch.cat([x, x], 1)
    g = torch.cat([g, -g * (1 + 2**-10)], 1)
    use: Use = LinearUse(x, g) if kind == "linear" else ConvUse(x.mT, g.mT, (2, 3, 1), [1], [0], [1], 1)
    got = add_squares(use, [torch.arange(6)], way=way)[0]
    torch.testing.assert_close(got.view(2, 3), squares(LinearUse(x, g)), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_nan_reaches_the_total(kind):
    both = uses(3, 4, 3, 2)
    both[kind].g[1] = float("nan")
    a, b = add_squares(both[kind], [torch.tensor([0, 2]), torch.tensor([1])])
    assert bool(a.isfinite().all())
    assert bool(b.isnan().all())


def peak_bytes(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("positions", [1, 2, 16])
def test_budget(kind, way, positions):
    """Rows and per-sample gradients of all samples would take several times the budget."""
    use = uses(400, positions, 96, 64)[kind]
    if way == "pairs" and positions > 2:
        pytest.skip("never chosen, and not meant to be frugal")
    everything = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(use.shape, dtype=torch.float64)
    one = 8 * 96 * 64
    for budget in (1 << 18, 1 << 20):
        peak = peak_bytes(lambda b=budget: use.add_squares([(everything, total)], b))
        assert peak <= budget + 2 * one
