"""Which torch functions use their parameters in a way that has a formula, and which formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from fl_unlearn.fisher import small

from .contract import ConvUse, LinearUse
from .recurrent import linear_elsewhere
from .uses import Use


@dataclass(eq=False)
class Claim:
    """One argument of a call as a parameter, and how its use follows from inputs and output's gradient.

    Attributes:
        value: The argument, a parameter or what was derived from one. Others are passed over.
        make: From the inputs and the gradient of the call's output, samples first, the use. With ``aligned``
            also the parameter's shape, less the samples' dimension.
        inputs: Other arguments of the call that the formula needs.
        trailing: Dimensions at the end of the output that cannot be the samples'.
        trailing_in: The same of each input.
        folds: Whether further dimensions may stand between the samples' and the trailing ones.
        aligned: The parameter is broadcast to the output, and its dimensions are matched from the last one.
    """

    value: Any
    make: Callable[..., Use]
    inputs: tuple[Tensor, ...] = ()
    trailing: int = 0
    trailing_in: tuple[int, ...] = ()
    folds: bool = True
    aligned: bool = False


Handler = Callable[..., Sequence[Claim]]


# --------------------------------------------------------------------------- contractions
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Claim]:
    if weight.ndim != 2:
        return []
    added = [] if bias is None else [Claim(bias, partial(small.BroadcastUse, shape=bias.shape), trailing=1)]
    return [Claim(weight, LinearUse, (input,), 1, (1,)), *added]


def _matmul(input: Tensor, other: Tensor) -> list[Claim]:
    if other.ndim != 2 or input.ndim < 2:
        return []
    return [Claim(other, lambda x, g: LinearUse(g, x), (input,), 1, (1,))]


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> list[Claim]:
    if beta != 1 or alpha != 1:
        return []
    return [Claim(input, small.BroadcastUse, aligned=True), *_matmul(mat1, mat2)]


def _conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> list[Claim]:
    def each(value: int | Sequence[int]) -> list[int]:
        one = [value] if isinstance(value, int) else list(value)
        return one * dims if len(one) == 1 else one

    spread = each(dilation)
    ends: list[Any]
    if isinstance(padding, str):
        same = zip(spread, weight.shape[2:], strict=True) if padding == "same" else [(0, 1)] * dims
        total = [d * (k - 1) for d, k in same]
        ends = [(t // 2, t - t // 2) for t in total]
    else:
        ends = each(padding)

    def use(x: Tensor, g: Tensor) -> Use:
        return ConvUse(x, g, weight.shape, each(stride), ends, spread, groups)

    claims = [Claim(weight, use, (input,), dims + 1, (dims + 1,), folds=False)]
    return [*claims, *_channels(bias, dims)]


def _channels(bias: Tensor | None, dims: int) -> list[Claim]:
    """The claim of a bias per channel before ``dims`` further dimensions."""
    if bias is None:
        return []
    make = partial(small.BroadcastUse, shape=bias.shape, axis=1)
    return [Claim(bias, make, trailing=dims + 1, folds=False)]


# --------------------------------------------------------------------------- norms
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Claim]:
    if training or running_mean is None or running_var is None:
        return []
    mean, var, d = running_mean, running_var, input.ndim - 1

    def use(x: Tensor, g: Tensor) -> Use:
        return small.batch_norm_use(x, mean, var, eps, g)

    return [Claim(weight, use, (input,), d, (d,), folds=False), *_channels(bias, d - 1)]


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Claim]:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[Claim]:
    d = input.ndim - 1

    def use(x: Tensor, g: Tensor) -> Use:
        return small.group_norm_use(x, num_groups, eps, g)

    return [Claim(weight, use, (input,), d, (d,), folds=False), *_channels(bias, d - 1)]


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[Claim]:
    d = len(normalized_shape)

    def use(x: Tensor, g: Tensor) -> Use:
        return small.layer_norm_use(x, normalized_shape, eps, g)

    claims = [Claim(weight, use, (input,), d, (d,))]
    if bias is not None:
        claims.append(Claim(bias, partial(small.BroadcastUse, shape=bias.shape), trailing=d))
    return claims


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> list[Claim]:
    d = len(normalized_shape)

    def use(x: Tensor, g: Tensor) -> Use:
        return small.rms_norm_use(x, normalized_shape, eps, g)

    return [Claim(weight, use, (input,), d, (d,))]


def _prelu(input: Tensor, weight: Tensor) -> list[Claim]:
    d = input.ndim - 1

    def use(x: Tensor, g: Tensor) -> Use:
        return small.prelu_use(x, weight.shape, g)

    return [Claim(weight, use, (input,), d, (d,), folds=False)]


# --------------------------------------------------------------------------- look-ups
def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> list[Claim]:
    if max_norm is not None or scale_grad_by_freq:
        return []

    def use(indices: Tensor, g: Tensor) -> Use:
        return small.embedding_use(indices, g, weight.shape, padding_idx)

    return [Claim(weight, use, (input,), 1, (0,))]


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> list[Claim]:
    plain = max_norm is None and not scale_grad_by_freq and mode in ("sum", "mean")
    if not plain or input.ndim != 2 or offsets is not None:
        return []

    def use(indices: Tensor, *rest: Tensor) -> Use:
        factors = rest[0] if len(rest) == 2 else None
        return small.embedding_bag_use(
            indices, rest[-1], weight.shape, mode=mode, per_sample_weights=factors, padding_idx=padding_idx
        )

    inputs = (input,) if per_sample_weights is None else (input, per_sample_weights)
    return [Claim(weight, use, inputs, 1, (1,) * len(inputs), folds=False)]


# --------------------------------------------------------------------------- broadcasting
def _add(input: Any, other: Any, *, alpha: float = 1) -> list[Claim]:
    if alpha != 1:
        return []
    return [Claim(t, small.BroadcastUse, aligned=True) for t in (input, other)]


def _minus(g: Tensor, shape: Sequence[int]) -> Use:
    return small.BroadcastUse(-g, shape)


def _sub(input: Any, other: Any, *, alpha: float = 1) -> list[Claim]:
    if alpha != 1:
        return []
    return [Claim(input, small.BroadcastUse, aligned=True), Claim(other, _minus, aligned=True)]


def _mul(input: Any, other: Any) -> list[Claim]:
    def factor(parameter: Any, x: Any) -> list[Claim]:
        # The samples' dimension is found in x and output alike only if both have all dimensions.
        if not isinstance(x, Tensor) or not isinstance(parameter, Tensor) or x.ndim < parameter.ndim:
            return []
        return [Claim(parameter, small.ScaleUse, (x,), 0, (0,), aligned=True)]

    return [*factor(input, other), *factor(other, input)]


def _spread(input: Tensor, *_: Any, **__: Any) -> list[Claim]:
    return [Claim(input, small.BroadcastUse, aligned=True)]


T = torch.Tensor
FUNCTIONS: dict[Any, Handler] = {
    F.linear: _linear,
    linear_elsewhere: _linear,
    torch.conv1d: partial(_conv, 1),
    torch.conv2d: partial(_conv, 2),
    torch.conv3d: partial(_conv, 3),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.prelu: _prelu,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.addmm: _addmm,
}
"""Functions that use parameters, by what is claimed of their arguments, which are those of the function."""

for _handler, _functions in (
    (_matmul, (torch.matmul, torch.mm, T.matmul, T.mm, T.__matmul__)),
    (_add, (torch.add, T.add, T.add_, T.__add__, T.__radd__, T.__iadd__)),
    (_sub, (torch.sub, T.sub, T.sub_, T.__sub__, T.__isub__)),
    (_mul, (torch.mul, T.mul, T.__mul__, T.__rmul__)),
    (_spread, (T.expand, T.expand_as, T.repeat, torch.broadcast_to, T.broadcast_to, torch.tile, T.tile)),
):
    FUNCTIONS.update(dict.fromkeys(_functions, _handler))
