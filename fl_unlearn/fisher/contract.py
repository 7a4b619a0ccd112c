"""Uses of weights that are contracted with an input: those of ``linear`` and of convolutions.

One sample's gradient by such a weight, or by one tap of a kernel, is a sum over positions p of outer products
g_p x_pᵀ: the positions of a sequence, or those places of the output at which the tap meets the input and not
its padding. There are three exact ways to the sum over samples of its square, and constants below, measured
on one core with 1 MB of L2 cache, to choose by:

    pairs      Σ_p≤q (2 − [p = q]) (g_p g_q) (x_p x_q)ᵀ as one matrix product over pairs and samples, in
               float64, for terms cancel. With one position it is the outer product of squares.
    products   each sample's gradient by a matrix product, block by block, squared and summed while in cache.
    gradients  each sample's gradient by a convolution that has the samples as its groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .uses import Parts, Use

Padding = Sequence[int | tuple[int, int]]
"""Zeros at both ends of each spatial dimension: one number for both, or (before, after)."""

_ROWS = 256  # samples whose squares are summed in float32 before float64 takes over: error below 1e-5
_PAIRS = 2  # positions up to which pairs are cheaper than products
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}  # elements of a block of gradients; on a CPU, 1 MB
_LONG = 1 << 14  # elements from which squares are added sample by sample, in one pass over memory
_ROW_BYTES = 48  # temporaries per element of a row: gathered, upcast, scaled, and the factors of pairs
_LONG_ROW_BYTES = 16  # the same without pairs


def _at_least_float32(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def _block(device: torch.device) -> int:
    return _BLOCK.get(device.type, _BLOCK["cuda"])


def _blocks(x: Tensor, g: Tensor, rows: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Rows of both in blocks, in float32 or better, and the factor that the squares of g x have to get.

    Where the square of ``g`` could leave float32's range, it is scaled by a power of two first.
    """
    ordered = len(rows) == len(x) and torch.equal(rows, torch.arange(len(x), device=rows.device))
    blocks = math.ceil(len(rows) / at_once)
    for some in torch.split(rows, math.ceil(len(rows) / blocks)) if blocks else ():
        here = slice(int(some[0]), int(some[-1]) + 1) if ordered else some
        left, right = _at_least_float32(x[here]), _at_least_float32(g[here])
        top = float(torch.stack(torch.aminmax(right)).abs().max()) if right.numel() else 0.0
        if top == 0.0 or not left.numel():
            continue
        if 1e-8 < top < 1e8 or not math.isfinite(top):
            yield left, right, 1.0
        else:
            exponent = max(-100, min(100, math.frexp(top)[1]))
            yield left, right * 2.0**-exponent, 2.0 ** (2 * exponent)


def _add_pairs(x: Tensor, g: Tensor, total: Tensor, factor: float) -> None:
    """Add to total (G, O, K) what x (n, G, P, K) and g (n, G, P, O) give, by pairs of positions."""
    x, g = x.double(), g.double()
    pairs = list(itertools.combinations_with_replacement(range(x.shape[2]), 2))
    right = torch.cat([x[:, :, p] * x[:, :, q] for p, q in pairs])
    left = torch.cat([g[:, :, p] * g[:, :, q] * (2 - (p == q)) for p, q in pairs])
    left, right = left.permute(1, 2, 0), right.transpose(0, 1)
    if total.is_contiguous():
        total.baddbmm_(left, right, alpha=factor)
    else:  # the tap of a kernel: baddbmm_ would copy it to and fro
        total.add_(torch.bmm(left, right), alpha=factor)


def _add_products(x: Tensor, g: Tensor, total: Tensor, factor: float, budget: int) -> None:
    """Add to total (G, O, K) what x (n, G, P, K) and g (n, G, P, O) give, by each sample's product."""
    n, groups, _, k = x.shape
    limit = min(_block(x.device), budget // (3 * x.element_size()))
    width = max(1, min(total.shape[1], limit // (groups * k)))
    width = math.ceil(total.shape[1] / math.ceil(total.shape[1] / width))
    at_once = max(1, min(n, limit // (groups * width * k)))
    # Rows a multiple of 1 KiB apart share cache sets: products of few positions were 4 times slower.
    room = x.new_empty(at_once * groups * width, k + 16 if k % 256 == 0 else k)[:, :k]
    for low in range(0, total.shape[1], width):
        part = total[:, low : low + width]
        squares = x.new_zeros(part.shape)
        for some in range(0, n, at_once):
            left = g[some : some + at_once, :, :, low : low + width].mT.flatten(0, 1)
            right = x[some : some + at_once].flatten(0, 1)
            product = torch.unflatten(room[: len(left) * left.shape[1]], 0, (len(left), -1))
            torch.bmm(left, right, out=product)
            _add_squares_of(torch.unflatten(product, 0, (-1, groups)), squares)
        part.add_(squares, alpha=factor)


def _add_squares_of(gradients: Tensor, squares: Tensor) -> None:
    """Add the squares of gradients (n, *) to (*); they are spoilt."""
    if len(gradients) > 1 and (squares.numel() < _LONG or not squares.is_cpu):
        squares += gradients.square_().sum(0)
    else:
        for one in gradients:
            squares.addcmul_(one, one)


def _add(x: Tensor, g: Tensor, total: Tensor, factor: float, budget: int) -> None:
    if x.shape[2] <= _PAIRS:
        _add_pairs(x, g, total, factor)
    else:
        _add_products(x, g, total, factor, budget)


class LinearUse(Use):
    """The weight of ``linear``: output = input @ weightᵀ.

    Args:
        x: Input, shape (N, *, K), with any number of middle dimensions.
        g: Gradient by the output, shape (N, *, O).
    """

    def __init__(self, x: Tensor, g: Tensor) -> None:
        self.shape = (g.shape[-1], x.shape[-1])
        positions = math.prod(x.shape[1:-1])
        self.x = x.reshape(len(x), positions, x.shape[-1])
        self.g = g.reshape(len(g), positions, g.shape[-1])

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        return _at_least_float32(self.g[rows]).mT @ _at_least_float32(self.x[rows])

    def add_squares(self, parts: Parts, budget: int) -> None:
        """See `Use.add_squares`."""
        elements = sum(self.shape) * max(1, self.x.shape[1])
        row = elements * (_ROW_BYTES if self.x.shape[1] <= _PAIRS else _LONG_ROW_BYTES)
        at_once = min(_ROWS, max(1, budget // 2 // row))
        for rows, total in parts:
            for x, g, factor in _blocks(self.x, self.g, rows, at_once):
                _add(x.unsqueeze(1), g.unsqueeze(1), total.unsqueeze(0), factor, budget // 2)


class ConvUse(Use):
    """The weight of ``conv1d``, ``conv2d`` or ``conv3d``.

    Args:
        x: Input, shape (N, C, *spatial).
        g: Gradient by the output, shape (N, O, *spatial of the output).
        weight_shape: (O, C / groups, *kernel).
        stride: Per spatial dimension.
        padding: Per spatial dimension, with zeros; other paddings are applied to ``x`` before.
        dilation: Per spatial dimension.
        groups: Number of blocks of connections.
    """

    def __init__(
        self,
        x: Tensor,
        g: Tensor,
        weight_shape: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.shape = tuple(weight_shape)
        self.x = x
        self.g = g
        self.stride = tuple(stride)
        self.padding = [(p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding]
        self.dilation = tuple(dilation)
        self.groups = groups

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        if len(rows):
            return self._gradients(_at_least_float32(self.x[rows]), _at_least_float32(self.g[rows]))
        return _at_least_float32(self.g[:0]).new_zeros((0, *self.shape))

    def _gradients(self, x: Tensor, g: Tensor) -> Tensor:
        n = len(x)
        padding = [before for before, _ in self.padding]
        if any(before != after for before, after in self.padding):
            x = nn.functional.pad(x, [end for pair in reversed(self.padding) for end in pair])
            padding = [0] * len(padding)
        # With the samples as groups of one picture, the gradient by the weight is each sample's own.
        out: Tensor = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            x.new_empty(()).expand(n * self.shape[0], *self.shape[1:]),
            None,
            self.stride,
            padding,
            self.dilation,
            False,
            [0] * len(padding),
            n * self.groups,
            [False, True, False],
        )[1]
        return out.view(n, *self.shape)

    def add_squares(self, parts: Parts, budget: int) -> None:
        """See `Use.add_squares`."""
        elements = self.x[:1].numel() + self.g[:1].numel()
        at_once = min(_ROWS, max(1, budget // 2 // (_ROW_BYTES * max(1, elements))))
        per_block = max(1, min(_block(self.x.device), budget // 16) // max(1, math.prod(self.shape)))
        taps = self._taps()
        for rows, total in parts:
            by_taps = self._cost_of_taps(taps, len(rows)) < self._cost_of_gradients(len(rows), per_block)
            for x, g, factor in _blocks(self.x, self.g, rows, at_once):
                if by_taps:
                    self._add_taps(taps, x, g, total, factor, budget // 2)
                else:
                    squares = x.new_zeros(self.shape)
                    for xs, gs in zip(torch.split(x, per_block), torch.split(g, per_block), strict=True):
                        _add_squares_of(self._gradients(xs, gs), squares)
                    total.add_(squares, alpha=factor)

    def _add_taps(
        self, taps: list[_Tap], x: Tensor, g: Tensor, total: Tensor, factor: float, budget: int
    ) -> None:
        def blocks(t: Tensor) -> Tensor:
            return t.reshape(len(t), self.groups, t.shape[1] // self.groups, -1).transpose(2, 3)

        for tap in taps:
            here = torch.unflatten(total[tap.of_weight], 0, (self.groups, -1))
            _add(blocks(x[tap.of_x]), blocks(g[tap.of_g]), here, factor, budget)

    def _taps(self) -> list[_Tap]:
        """The taps that meet the input somewhere."""
        axes = []
        for d, (stride, dilation, (before, _)) in enumerate(
            zip(self.stride, self.dilation, self.padding, strict=True)
        ):
            axis = []
            for i in range(self.shape[2 + d]):
                shift = i * dilation - before  # output q meets input q * stride + shift
                low = max(0, -(shift // stride))
                high = min(self.g.shape[2 + d], (self.x.shape[2 + d] - 1 - shift) // stride + 1)
                if low < high:
                    first = low * stride + shift
                    axis.append(
                        (i, slice(first, first + (high - low - 1) * stride + 1, stride), slice(low, high))
                    )
            axes.append(axis)
        return [_Tap(*((..., *of) for of in zip(*tap, strict=True))) for tap in itertools.product(*axes)]

    # Nanoseconds on one core, per part; only their ratio counts.
    def _cost_of_taps(self, taps: list[_Tap], n: int) -> float:
        numel = self.shape[0] * self.shape[1]
        cost = 0.0
        for p in (tap.positions for tap in taps):
            cost += 40e3 + 2.5 * numel
            if p <= _PAIRS:
                cost += n * numel * 0.05 * p * (p + 1) / 2
            else:
                cost += n * (numel * (0.25 + p / 45) + 50 * self.groups)
        return cost

    def _cost_of_gradients(self, n: int, at_once: int) -> float:
        numel, positions = math.prod(self.shape), math.prod(self.g.shape[2:])
        flops = positions / (45 if numel == self.shape[0] * self.shape[1] else 80)
        return numel * 0.5 + n * numel * (0.35 + flops) + 60e3 * math.ceil(n / at_once)


class _Tap(NamedTuple):
    """One tap of a kernel: its place in the weight, and what of input and output meet by it."""

    of_weight: tuple[Any, ...]
    of_x: tuple[Any, ...]
    of_g: tuple[Any, ...]

    @property
    def positions(self) -> int:
        return math.prod(s.stop - s.start for s in self.of_g[1:])
