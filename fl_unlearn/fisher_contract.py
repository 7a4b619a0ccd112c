"""Uses of weights that are contracted with an input: those of ``linear`` and of convolutions.

One sample's gradient by such a weight is a sum over positions p of outer products g_p x_pᵀ: the positions of
a sequence, or the places at which a convolution's kernel meets the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fisher_uses import Use

Padding = Sequence[int | tuple[int, int]]
"""Zeros at both ends of each spatial dimension: one number for both, or (before, after)."""


def _at_least_float32(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


class LinearUse(Use):
    """The weight of ``linear``: output = input @ weightᵀ.

    Args:
        x: Input, shape (N, *, K), with any number of middle dimensions.
        g: Gradient by the output, shape (N, *, O).
    """

    def __init__(self, x: Tensor, g: Tensor) -> None:
        self.shape = (g.shape[-1], x.shape[-1])
        self.x = x
        self.g = g

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        x = _at_least_float32(self.x[rows].flatten(1, -2) if self.x.ndim > 2 else self.x[rows].unsqueeze(1))
        g = _at_least_float32(self.g[rows].flatten(1, -2) if self.g.ndim > 2 else self.g[rows].unsqueeze(1))
        return g.transpose(1, 2) @ x


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
        k = len(rows)
        if k == 0:
            return self.g.new_zeros((0, *self.shape), dtype=_at_least_float32(self.g[:0]).dtype)
        x, g = _at_least_float32(self.x[rows]), _at_least_float32(self.g[rows])
        padding = [before for before, _ in self.padding]
        if any(before != after for before, after in self.padding):
            x = nn.functional.pad(x, [end for pair in reversed(self.padding) for end in pair])
            padding = [0] * len(padding)
        # With the samples as groups of one picture, the gradient by the weight is each sample's own.
        out: Tensor = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            x.new_empty(()).expand(k * self.shape[0], *self.shape[1:]),
            None,
            self.stride,
            padding,
            self.dilation,
            False,
            [0] * len(padding),
            k * self.groups,
            [False, True, False],
        )[1]
        return out.view(k, *self.shape)
