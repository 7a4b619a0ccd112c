"""Slow, obvious squared gradients by the weights of linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONV = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def linear_gradient(x: Tensor, g: Tensor) -> Tensor:
    """One sample's gradient by the weight, float64: x (*, K), g (*, O)."""
    positions = math.prod(x.shape[:-1])
    x, g = x.double().reshape(positions, x.shape[-1]), g.double().reshape(positions, g.shape[-1])
    out = torch.zeros(g.shape[1], x.shape[1], dtype=torch.float64)
    for p in range(len(x)):
        out += g[p][:, None] * x[p][None, :]
    return out


def conv_gradient(
    x: Tensor,
    g: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """One sample's gradient by the weight, float64, by autograd: x (C, *), g (O, *)."""
    weight = torch.zeros(*weight_shape, dtype=torch.float64, requires_grad=True)
    padded = nn.functional.pad(x.double()[None], [end for pair in reversed(padding) for end in pair])
    out = CONV[len(stride)](padded, weight, None, stride, 0, dilation, groups)
    assert out.shape[1:] == g.shape
    return torch.autograd.grad(out, weight, g.double()[None])[0]
