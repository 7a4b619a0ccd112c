"""LSTM, GRU and RNN such that every weight is used once per layer and direction, at all time steps at once.

A step needs W_ih x_t + b_ih and W_hh h + b_hh with h from the step before. The recurrence is run without a
graph. Then `linear_elsewhere` says, once for all steps, that x and the h each step started from went through
those weights, and the backward pass through time (`Recurrence.back`) gives its outputs their exact gradients.
So whoever watches `linear_elsewhere` sees what a parameter met, and the gradient of what came out. LSTMs
with a projection have a third such call. First derivatives only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .fisher_recurrence import Gru, Lstm, Recurrence, ReluRnn, Rnn, States, over_time


# --------------------------------------------------------------------------- what a watcher sees
def linear_elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stands for ``linear(x, weight, bias)`` whose value somebody has computed already.

    Args:
        x: Shape (N, T, in).
        weight: Shape (out, in).
        bias: Shape (out,).

    Returns:
        Zeros without storage, shape (N, T, out), with the derivatives of ``linear``. Modes that override
        torch functions see this call.
    """
    if torch.overrides.has_torch_function((x, weight)):
        seen: Tensor = torch.overrides.handle_torch_function(linear_elsewhere, (x, weight), x, weight, bias)
        return seen
    zeros: Tensor = _Zeros.apply(x, weight, bias)
    return zeros


class _Zeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Not expand: that is a view, and watchers may wish to attach to the result itself.
        zero = x.new_zeros(1)
        return zero.set_(zero.untyped_storage(), 0, (*x.shape[:-1], len(weight)), (0,) * x.dim())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # Time comes first in memory, and a product of 3-D tensors copies what is not contiguous.
        g = g.transpose(0, 1)
        wanted = ctx.needs_input_grad
        return (
            (g @ weight).transpose(0, 1) if wanted[0] else None,
            g.flatten(0, 1).t() @ x.transpose(0, 1).flatten(0, 1) if wanted[1] else None,
            g.sum((0, 1)) if wanted[2] else None,
        )


# --------------------------------------------------------------------------- layers
class _Through(torch.autograd.Function):
    """Says that the outputs came from what `linear_elsewhere` stands for, and from the first states."""

    @staticmethod
    def forward(ctx: Any, run: Recurrence, outputs: States, *inputs: Tensor) -> States:
        ctx.run = run
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.run.back(*grads))


def _direction(
    kind: type[Recurrence],
    x: Tensor,
    states: States,
    parameters: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
    live: Tensor | None,
) -> States:
    biases = parameters[2:4] if has_biases else []
    weights = [*parameters[:2], *parameters[2 + len(biases) :]]
    with torch.no_grad(), torch._C.DisableTorchFunction(), torch.autocast(x.device.type, enabled=False):
        run = kind(x.transpose(0, 1), weights, biases, states, backwards, live)
        outputs = run.outputs()
        met = [x, over_time({t: before[0] for t, before in run.before.items()})]
        if isinstance(run, Lstm) and len(weights) > 2:
            met.append(over_time(run.m))
    run.after.clear()
    calls = map(linear_elsewhere, met, weights, [*biases, *[None] * (len(weights) - len(biases))])
    through: States = _Through.apply(run, outputs, *calls, *states)
    return through


def recurrent(
    kind: type[Recurrence],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    live: Tensor | None = None,
) -> States:
    """All layers and directions.

    Args:
        kind: `Lstm`, `Gru`, `Rnn` or `ReluRnn`.
        x: Shape (N, T, size), T at least 1.
        states: To start from, each of shape (layers · directions, N, size).
        weights: As in ``torch.lstm``: for each layer and direction W_ih, W_hh, then b_ih, b_hh, then W_hr.
        has_biases: Whether there are biases.
        layers: Number of layers.
        bidirectional: Whether each layer runs in both directions.
        live: Where steps are part of the sample, shape (T, N, 1); the output is zero elsewhere.

    Returns:
        The output, shape (N, T, directions · size), and the last states, shaped as ``states``.
    """
    # Under autocast what came before may be half precision.
    x, *states = (t.to(weights[0].dtype) for t in (x, *states))
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    last = []
    for layer in range(layers):
        outs = []
        for backwards in range(directions):
            k = layer * directions + backwards
            own = weights[k * each : (k + 1) * each]
            start = tuple(s[k] for s in states)
            out, *others = _direction(kind, x, start, own, has_biases, bool(backwards), live)
            last.append((out[:, 0 if backwards else -1], *others))
            outs.append(out)
        x = torch.cat(outs, 2) if bidirectional else outs[0]
    if live is not None:
        x = x * live.transpose(0, 1)
    return (x, *(torch.stack(s) for s in zip(*last, strict=True)))


# --------------------------------------------------------------------------- single steps
def _lstm_cell(
    x: Tensor, states: Sequence[Tensor], w: Sequence[Tensor], b: Sequence[Tensor | None]
) -> States:
    h, c = states
    i, f, g, o = (functional.linear(x, w[0], b[0]) + functional.linear(h, w[1], b[1])).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, w: Sequence[Tensor], b: Sequence[Tensor | None]) -> Tensor:
    r, z, n = functional.linear(x, w[0], b[0]).chunk(3, 1)
    by_r, by_z, q = functional.linear(h, w[1], b[1]).chunk(3, 1)
    return torch.lerp((n + (r + by_r).sigmoid() * q).tanh(), h, (z + by_z).sigmoid())


def _rnn_cell(
    act: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, w: Sequence[Tensor], b: Sequence[Tensor | None]
) -> Tensor:
    return act(functional.linear(x, w[0], b[0]) + functional.linear(h, w[1], b[1]))


CELLS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
    torch.rnn_tanh_cell: partial(_rnn_cell, torch.tanh),
    torch.rnn_relu_cell: partial(_rnn_cell, torch.relu),
}
"""By the function each stands for; called with input, states, both weights, both biases."""

RECURRENT: dict[Any, type[Recurrence]] = {
    torch.lstm: Lstm,
    torch.gru: Gru,
    torch.rnn_tanh: Rnn,
    torch.rnn_relu: ReluRnn,
}
"""By the function that `recurrent` is to stand for."""
