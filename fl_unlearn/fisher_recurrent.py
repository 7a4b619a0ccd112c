"""LSTM, GRU and RNN such that every weight is used once per layer and direction, at all time steps at once.

A step needs W_ih x_t + b_ih and W_hh h + b_hh with h from the step before. The recurrence is run without a
graph. Then `linear_elsewhere` says, once for all steps, that x and the h each step started from went through
those weights, and the backward pass through time, written out here, gives its outputs their exact gradients.
So whoever watches `linear_elsewhere` sees what a parameter met, and the gradient of what came out. LSTMs
with a projection have a third such call. First derivatives only.

Formulas: the documentation of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Fused, and into place: sigmoid_(g, y) is g y (1 − y), tanh_(g, y) is g (1 − y²).
_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back = torch.ops.aten.tanh_backward.grad_input

States = tuple[Tensor, ...]
"""h, and c in an LSTM, each of shape (N, size)."""


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


# --------------------------------------------------------------------------- the recurrences


def over_time(steps: dict[int, Tensor]) -> Tensor:
    """Tensors (N, size) by step as one, shape (N, T, size)."""
    return torch.stack([steps[t] for t in range(len(steps))], 1)


class _Recurrence(ABC):
    """One layer in one direction; computes its forward pass and keeps what the backward pass needs.

    Buffers over time are (T, N, size), so that a step is contiguous.

    Args:
        x: Shape (T, N, in).
        weights: W_ih, W_hh, and W_hr of an LSTM that projects its h.
        biases: b_ih and b_hh; may be missing.
        states: Those to start from.
        backwards: Whether time runs from the end.
        live: Where a step is part of the sample, shape (T, N, 1); elsewhere states are kept.
    """

    def __init__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        states: States,
        backwards: bool,
        live: Tensor | None,
    ) -> None:
        w_ih, self.weight, *rest = weights
        self.projection = rest[0] if rest else None
        self.live = live
        self.order = range(len(x) - 1, -1, -1) if backwards else range(len(x))
        self.all = functional.linear(x, w_ih, self.outer_bias(*biases))  # becomes the gates, step by step
        self.prepare(*biases)
        self.before: dict[int, States] = {}
        self.after: dict[int, States] = {}
        for t in self.order:
            self.before[t] = states
            new = self.step(t, *states)
            states = new if live is None else tuple(map(torch.where, [live[t]] * len(new), new, states))
            self.after[t] = states

    def outer_bias(self, *biases: Tensor) -> Tensor | None:
        """What can be added before the recurrence: both biases, if there are any."""
        return biases[0] + biases[1] if biases else None

    @abstractmethod
    def prepare(self, *biases: Tensor) -> None:
        """Make views of the gates, and buffers."""

    @abstractmethod
    def step(self, t: int, *states: Tensor) -> States:
        """The states after step ``t`` from those before it."""

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """Gradients (T, N, size) that `step_back` writes: by W_ih x, by W_hh h, by W_hr m if there is one."""

    @abstractmethod
    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        """Gradients by the states before step ``t`` from those after it."""

    def outputs(self) -> States:
        """The h after every step, shape (N, T, size), and the last of the other states."""
        out = over_time({t: states[0] for t, states in self.after.items()})
        return (out, *self.after[self.order[-1]][1:])

    def back(self, of_h: Tensor, *of_last: Tensor) -> list[Tensor]:
        """From the gradients by `outputs` to those in `buffers`, as (N, T, size), and by the first states."""
        buffers = self.buffers()
        each = of_h.unbind(1)
        grads: States = (torch.zeros_like(each[0]), *of_last)
        for t in reversed(self.order):
            grads = (grads[0] + each[t], *grads[1:])
            if self.live is None:
                grads = self.step_back(t, buffers, *grads)
            else:
                kept = [g * ~self.live[t] for g in grads]
                new = self.step_back(t, buffers, *(g * self.live[t] for g in grads))
                grads = tuple(map(torch.add, new, kept))
        return [b.transpose(0, 1) for b in buffers] + list(grads)


class _Lstm(_Recurrence):
    """i, f, o = sigmoid, g = tanh; c ← f c + i g; m = o tanh(c); h = m, or W_hr m."""

    def prepare(self, *biases: Tensor) -> None:
        self.size = self.all.shape[2] // 4
        self.gates = [gates.chunk(4, 1) for gates in self.all.unbind()]
        self.tanh_c: dict[int, Tensor] = {}
        self.m: dict[int, Tensor] = {}

    def step(self, t: int, *states: Tensor) -> States:
        h, c = states
        gates = self.all[t].addmm_(h, self.weight.t())
        gates[:, : 2 * self.size].sigmoid_()
        i, f, g, o = self.gates[t]
        g.tanh_()
        o.sigmoid_()
        c = (f * c).addcmul_(i, g)
        self.tanh_c[t] = c.tanh()
        self.m[t] = o * self.tanh_c[t]
        return self.m[t] if self.projection is None else self.m[t] @ self.projection.t(), c

    def buffers(self) -> list[Tensor]:
        gates = torch.empty_like(self.all)
        if self.projection is None:
            return [gates, gates]
        return [gates, gates, gates.new_empty(*gates.shape[:2], self.projection.shape[0])]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        dh, dc = grads
        if self.projection is not None:
            buffers[2][t] = dh
            dh = dh @ self.projection
        i, f, g, o = self.gates[t]
        di, df, dg, do = buffers[0][t].chunk(4, 1)
        tanh_c = self.tanh_c[t]
        _sigmoid_back(torch.mul(dh, tanh_c, out=do), o, grad_input=do)
        dh = dh * o
        dc = _tanh_back(dh, tanh_c, grad_input=dh).add_(dc)
        _sigmoid_back(torch.mul(dc, g, out=di), i, grad_input=di)
        _sigmoid_back(torch.mul(dc, self.before[t][1], out=df), f, grad_input=df)
        _tanh_back(torch.mul(dc, i, out=dg), g, grad_input=dg)
        return buffers[1][t] @ self.weight, dc.mul_(f)


class _Gru(_Recurrence):
    """r, z = sigmoid; q = W_hn h + b_hn; n = tanh(W_in x + b_in + r q); h ← n + z (h − n)."""

    def outer_bias(self, *biases: Tensor) -> Tensor | None:
        if not biases:
            return None
        r, z, _ = biases[1].chunk(3)
        return biases[0] + torch.cat([r, z, torch.zeros_like(z)])

    def prepare(self, *biases: Tensor) -> None:
        self.two = self.all.shape[2] // 3 * 2
        self.bias_n = biases[1][self.two :] if biases else None
        self.gates = [gates.chunk(3, 1) for gates in self.all.unbind()]
        self.q: dict[int, Tensor] = {}

    def step(self, t: int, *states: Tensor) -> States:
        (h,) = states
        self.all[t, :, : self.two].addmm_(h, self.weight[: self.two].t()).sigmoid_()
        r, z, n = self.gates[t]
        self.q[t] = functional.linear(h, self.weight[self.two :], self.bias_n)
        n.addcmul_(r, self.q[t]).tanh_()
        return (torch.lerp(n, h, z),)

    def buffers(self) -> list[Tensor]:
        return [torch.empty_like(self.all), torch.empty_like(self.all)]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        (dh,) = grads
        r, z, n = self.gates[t]
        dr, dz, dn = buffers[0][t].chunk(3, 1)
        past = dh * z
        _tanh_back(torch.sub(dh, past, out=dn), n, grad_input=dn)
        _sigmoid_back(torch.sub(self.before[t][0], n, out=dz).mul_(dh), z, grad_input=dz)
        _sigmoid_back(torch.mul(dn, self.q[t], out=dr), r, grad_input=dr)
        by_h = buffers[1][t].copy_(buffers[0][t])
        by_h[:, self.two :].mul_(r)
        return (past.addmm_(by_h, self.weight),)


class _Rnn(_Recurrence):
    """h ← tanh of the sum."""

    act = staticmethod(torch.tanh_)

    def prepare(self, *biases: Tensor) -> None:
        """Nothing: the gates are h."""

    def step(self, t: int, *states: Tensor) -> States:
        return (self.act(self.all[t].addmm_(states[0], self.weight.t())),)

    def buffers(self) -> list[Tensor]:
        return [torch.empty_like(self.all)] * 2

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        self.act_back(grads[0], self.all[t], buffers[0][t])
        return (buffers[0][t] @ self.weight,)

    @staticmethod
    def act_back(grad: Tensor, h: Tensor, out: Tensor) -> None:
        """Into ``out`` the gradient by the sum."""
        _tanh_back(grad, h, grad_input=out)


class _ReluRnn(_Rnn):
    """h ← max(0, the sum)."""

    act = staticmethod(torch.relu_)

    @staticmethod
    def act_back(grad: Tensor, h: Tensor, out: Tensor) -> None:
        torch.mul(grad, h > 0, out=out)


class _Through(torch.autograd.Function):
    """Says that the outputs came from what `linear_elsewhere` stands for, and from the first states."""

    @staticmethod
    def forward(ctx: Any, run: _Recurrence, outputs: States, *inputs: Tensor) -> States:
        ctx.run = run
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.run.back(*grads))


def _direction(
    kind: type[_Recurrence],
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
        if isinstance(run, _Lstm) and len(weights) > 2:
            met.append(over_time(run.m))
    run.after.clear()
    calls = map(linear_elsewhere, met, weights, [*biases, *[None] * (len(weights) - len(biases))])
    through: States = _Through.apply(run, outputs, *calls, *states)
    return through


def recurrent(
    kind: type[_Recurrence],
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

RECURRENT: dict[Any, type[_Recurrence]] = {
    torch.lstm: _Lstm,
    torch.gru: _Gru,
    torch.rnn_tanh: _Rnn,
    torch.rnn_relu: _ReluRnn,
}
"""By the function that `recurrent` is to stand for."""
