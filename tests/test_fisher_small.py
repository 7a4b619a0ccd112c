"""Uses of biases, scales and embeddings against the gradient of one sample at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_unlearn import fisher_small as small
from fl_unlearn.fisher_uses import Use

Call = Callable[[Tensor, Tensor], Tensor]  # (x, parameter) -> output
Make = Callable[[Tensor, Tensor], Use]  # (x, g) -> use


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def one_by_one(call: Call, x: Tensor, g: Tensor, parameter: Tensor) -> Tensor:
    """Each sample's gradient by the parameter, shape (N, *shape), float64."""
    out = torch.zeros(len(g), *parameter.shape, dtype=torch.float64)
    for n in range(len(g)):
        p = parameter.double().requires_grad_()
        row = x[n : n + 1]
        y = call(row.double() if row.is_floating_point() else row, p)
        (out[n],) = torch.autograd.grad(y, p, g[n : n + 1].double(), allow_unused=False)
    return out


def check(use: Use, want: Tensor, budgets: tuple[int, ...] = (1, 5000, 2**30)) -> None:
    """Gradients, and sums of squares by groups of shuffled rows of which one is in no group."""
    n = len(want)
    got = use.gradients(torch.arange(n))
    assert got.dtype in (torch.float32, torch.float64)
    atol = 1e-6 * float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=atol)
    rows = torch.randperm(n)
    groups = [rows[1 : n // 2], rows[max(1, n // 2) :], rows[:0]]
    for budget in budgets:
        totals = [torch.full(use.shape, 0.5, dtype=torch.float64) for _ in groups]
        use.add_squares(list(zip(groups, totals, strict=True)), budget)
        for some, total in zip(groups, totals, strict=True):
            squares = want[some].square().sum(0)
            torch.testing.assert_close(
                total - 0.5, squares, rtol=1e-5, atol=1e-9 + 1e-6 * float(squares.max())
            )


def compare(call: Call, make: Make, x: Tensor, parameter: Tensor, dtype: torch.dtype = torch.float32) -> None:
    x = x.to(dtype) if x.is_floating_point() else x
    y = call(x.double() if x.is_floating_point() else x, parameter.double())
    g = torch.randn_like(y).to(dtype)
    check(make(x, g), one_by_one(call, x, g, parameter))


SIZES = pytest.mark.parametrize("n", [0, 1, 5])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])


# --------------------------------------------------------------------------- broadcast parameters
ADDED = [
    ((4,), (4,)),  # of (N, O)
    ((3, 4), (4,)),
    ((3, 4), (3, 4)),
    ((3, 4), (1, 3, 4)),  # positions
    ((3, 4), (1, 1, 4)),  # class token
    ((3, 4), (3, 1)),
    ((3, 4), (1,)),
    ((3, 4), ()),
    ((2, 3, 4), (2, 1, 1)),
    ((1, 4), (1, 4)),
]


@SIZES
@pytest.mark.parametrize(("rest", "shape"), ADDED)
def test_added_and_multiplied_by_broadcasting(n: int, rest: tuple[int, ...], shape: tuple[int, ...]) -> None:
    x, p = torch.randn(n, *rest), torch.randn(shape)
    compare(lambda x, p: x + p, lambda _, g: small.BroadcastUse(g, shape), x, p)
    compare(lambda x, p: x * p, lambda x, g: small.ScaleUse(x, g, shape), x, p)


@SIZES
@pytest.mark.parametrize("rest", [(3,), (3, 5), (3, 4, 2), (3, 1, 2, 3)])
def test_bias_along_the_channels(n: int, rest: tuple[int, ...]) -> None:
    view = (3,) + (1,) * (len(rest) - 1)
    compare(
        lambda x, p: x + p.view(view),
        lambda _, g: small.BroadcastUse(g, (3,), 1),
        torch.randn(n, *rest),
        torch.ones(3),
    )


def test_input_that_is_itself_broadcast() -> None:
    compare(
        lambda x, p: x * p, lambda x, g: small.ScaleUse(x, g, (3, 1)), torch.randn(5, 1, 4), torch.ones(3, 1)
    )


@DTYPES
def test_sums_are_float32_or_better(dtype: torch.dtype) -> None:
    g = torch.rand(2, 4000, 1).to(dtype)
    check(small.BroadcastUse(g, (1,)), g.double().sum(1))
    x = torch.rand_like(g)
    check(small.ScaleUse(x, g, (1,)), (x.double() * g.double()).sum(1))


def test_layouts_do_not_matter() -> None:
    x, g = (torch.randn(2, 5, 4, 3).permute(0, 3, 1, 2) for _ in range(2))
    norm = nn.BatchNorm2d(3)
    a = small.batch_norm_use(x, norm.running_mean, norm.running_var, 0.1, g)
    b = small.batch_norm_use(x.contiguous(), norm.running_mean, norm.running_var, 0.1, g.contiguous())
    torch.testing.assert_close(a.gradients(torch.arange(2)), b.gradients(torch.arange(2)))


def test_a_gradient_finer_than_the_input_is_not_rounded() -> None:
    x, norm = torch.randn(4, 3, 5), nn.BatchNorm1d(3)
    g = 1 + 1e-9 * torch.randn(4, 3, 5, dtype=torch.float64)
    use = small.batch_norm_use(x, norm.running_mean, norm.running_var, 1e-5, g)
    want = (x.double() * g).sum(2) * torch.tensor(1 + 1e-5).rsqrt()
    torch.testing.assert_close(use.gradients(torch.arange(4)), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 3), (4,), (5, 1), (1, 5, 1, 3)])
def test_shapes_without_a_formula_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotImplementedError, match=r"value per row|does not broadcast"):
        small.BroadcastUse(torch.randn(5, 3), shape)


# --------------------------------------------------------------------------- norms
@SIZES
@DTYPES
@pytest.mark.parametrize("rest", [(), (5,), (4, 2), (2, 3, 2)])
def test_batch_norm(n: int, dtype: torch.dtype, rest: tuple[int, ...]) -> None:
    mean, var = torch.randn(3), torch.rand(3)

    def call(x: Tensor, p: Tensor) -> Tensor:
        return functional.batch_norm(x, mean.double(), var.double(), p, eps=1e-3)

    compare(
        call,
        lambda x, g: small.batch_norm_use(x, mean, var, 1e-3, g),
        3 + torch.randn(n, 3, *rest),
        torch.rand(3),
        dtype,
    )


@SIZES
@DTYPES
@pytest.mark.parametrize(("rest", "over"), [((6,), 1), ((3, 6), 1), ((3, 6), 2), ((2, 3, 4), 2)])
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_norms_over_last_dimensions(
    name: str, n: int, dtype: torch.dtype, rest: tuple[int, ...], over: int
) -> None:
    x, shape = 3 + torch.randn(n, *rest), rest[-over:]
    norm = getattr(functional, f"{name}_norm")
    make = getattr(small, f"{name}_norm_use")

    def call(x: Tensor, p: Tensor) -> Tensor:
        return norm(x, shape, p, eps=1e-3)

    compare(call, lambda x, g: make(x, shape, 1e-3, g), x, torch.rand(shape), dtype)


def test_rms_norm_takes_the_epsilon_of_the_input() -> None:
    x = 1e-4 * torch.randn(5, 6)
    call = lambda x, p: functional.rms_norm(x, (6,), p, eps=torch.finfo(torch.float32).eps)  # noqa: E731
    compare(call, lambda x, g: small.rms_norm_use(x, (6,), None, g), x, torch.rand(6))


@SIZES
@DTYPES
@pytest.mark.parametrize("rest", [(), (5,), (4, 2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(n: int, dtype: torch.dtype, rest: tuple[int, ...], groups: int) -> None:
    if not rest and groups == 6:
        rest = (3,)  # one value a group has no variance
    x = 3 + torch.randn(n, 6, *rest)
    call = lambda x, p: functional.group_norm(x, groups, p, eps=1e-3)  # noqa: E731
    compare(call, lambda x, g: small.group_norm_use(x, groups, 1e-3, g), x, torch.rand(6), dtype)


@pytest.mark.parametrize("n", [1, 5])  # torch refuses 0
@DTYPES
def test_instance_norm(n: int, dtype: torch.dtype) -> None:
    x = 3 + torch.randn(n, 6, 4, 2)
    call = lambda x, p: functional.instance_norm(x, weight=p, eps=1e-3)  # noqa: E731
    compare(call, lambda x, g: small.group_norm_use(x, 6, 1e-3, g), x, torch.rand(6), dtype)


@SIZES
@pytest.mark.parametrize(
    ("rest", "shape"), [((3,), (3,)), ((3, 4), (3,)), ((3, 4), (1,)), ((), (1,)), ((3, 2, 2), (3,))]
)
def test_prelu(n: int, rest: tuple[int, ...], shape: tuple[int, ...]) -> None:
    compare(
        functional.prelu, lambda x, g: small.prelu_use(x, shape, g), torch.randn(n, *rest), torch.rand(shape)
    )


# --------------------------------------------------------------------------- embeddings
@SIZES
@DTYPES
@pytest.mark.parametrize("rest", [(), (1,), (7,), (2, 3), (0,)])
@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding(n: int, dtype: torch.dtype, rest: tuple[int, ...], padding: int | None) -> None:
    x = torch.randint(5, (n, *rest))
    call = lambda x, p: functional.embedding(x, p, padding_idx=padding)  # noqa: E731
    compare(call, lambda x, g: small.embedding_use(x, g, (5, 3), padding), x, torch.randn(5, 3), dtype)


def test_embedding_forms_no_gradient_of_the_whole_table() -> None:
    x, g = torch.randint(10**6, (50, 4)), torch.randn(50, 4, 2)
    total = torch.zeros(10**6, 2, dtype=torch.float64)
    small.embedding_use(x, g, (10**6, 2)).add_squares([(torch.arange(50), total)], 2**40)
    torch.testing.assert_close(total.sum(), g.double().square().sum(), rtol=1e-5, atol=0)


@SIZES
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("size", [1, 7])
def test_bags_of_one_size(n: int, mode: str, padding: int | None, size: int) -> None:
    x = torch.randint(5, (n, size))
    call = lambda x, p: functional.embedding_bag(x, p, mode=mode, padding_idx=padding)  # noqa: E731
    make = lambda x, g: small.embedding_bag_use(x, g, (5, 3), mode=mode, padding_idx=padding)  # noqa: E731
    compare(call, make, x, torch.randn(5, 3))


@pytest.mark.parametrize(("mode", "weighted"), [("sum", True), ("sum", False), ("mean", False)])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("sizes", [[3, 0, 6, 1], [2], [0]])
def test_bags_by_offsets(
    sizes: list[int], padding: int | None, mode: str, last: bool, weighted: bool
) -> None:
    total = sum(sizes)
    x, weights = torch.randint(5, (total,)), torch.randn(total) if weighted else None
    ends = torch.tensor(sizes).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends if last else ends[:-1]])
    g, want = torch.randn(len(sizes), 3), torch.zeros(len(sizes), 5, 3, dtype=torch.float64)
    for n in range(len(sizes)):
        p = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        bag = slice(int(ends[n]) - sizes[n], int(ends[n]))
        w = None if weights is None else weights[bag].double()
        y = functional.embedding_bag(
            x[bag], p, torch.tensor([0]), mode=mode, padding_idx=padding, per_sample_weights=w
        )
        (want[n],) = torch.autograd.grad(y, p, g[n : n + 1].double())
    kept = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    check(small.embedding_bag_use(x, g, (5, 3), offsets, per_sample_weights=weights, **kept), want)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_lookups_without_a_formula_are_refused(option: dict[str, object]) -> None:
    x, g = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 4)
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        small.embedding_use(x, g, (5, 4), **option)
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        small.embedding_bag_use(x, g, (5, 4), **option)
    with pytest.raises(NotImplementedError, match="max"):
        small.embedding_bag_use(x, g, (5, 4), mode="max")
