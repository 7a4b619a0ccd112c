"""LSTM, GRU and RNN made of ``linear`` calls over all time steps at once.

A step needs W_ih x_t + b_ih and W_hh h + b_hh with h from the step before. The first is one ``linear`` over
all steps. For the second, the recurrence is run without a graph; then one ``linear`` takes the h that each
step started from. Its output is what the recurrence used, and the backward pass through time, written out
here, gives both outputs their exact gradients. So whoever watches ``linear`` sees every weight used once per
layer and direction, at all steps. Projected LSTMs have a third ``linear``. First derivatives only.

Formulas: the documentation of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Fused, and into place: sigmoid_(g, y) is g y (1 − y), tanh_(g, y) is g (1 − y²).
_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back = torch.ops.aten.tanh_backward.grad_input

States = tuple[Tensor, ...]
"""h, and c in an LSTM, each of shape (N, size)."""


class Recurrence(ABC):
    """One layer in one direction; computes its forward pass and keeps what the backward pass needs.

    Buffers over time are (T, N, size), so that a step is contiguous.

    Args:
        a: W_ih x + b_ih, shape (N, T, gates).
        weight: W_hh, shape (gates, size of h).
        bias: b_hh, shape (gates,); may be missing.
        projection: W_hr of an LSTM that projects its h.
        states: Those to start from.
        backwards: Whether time runs from the end.
        live: Where a step is part of the sample, shape (T, N, 1); elsewhere states are kept. None: everywhere.
    """

    def __init__(
        self,
        a: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        projection: Tensor | None,
        states: States,
        backwards: bool,
        live: Tensor | None,
    ) -> None:
        self.weight, self.projection, self.live = weight, projection, live
        steps = a.shape[1]
        self.order = range(steps - 1, -1, -1) if backwards else range(steps)
        self.prepare(a.transpose(0, 1), bias)
        self.before: list[States] = [()] * steps
        self.after: list[States] = [()] * steps
        for t in self.order:
            self.before[t] = states
            new = self.step(t, *states)
            states = new if live is None else tuple(map(torch.where, [live[t]] * len(new), new, states))
            self.after[t] = states

    @abstractmethod
    def prepare(self, a: Tensor, bias: Tensor | None) -> None:
        """Take what does not depend on states: ``a``, here (T, N, gates), and the bias."""

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
        out = torch.stack([h for h, *_ in self.after], 1)
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


def _with_bias(a: Tensor, bias: Tensor | None) -> Tensor:
    """``a`` + ``bias`` in a buffer of its own, contiguous."""
    out = torch.empty_like(a, memory_format=torch.contiguous_format)
    return out.copy_(a) if bias is None else torch.add(a, bias, out=out)


class Lstm(Recurrence):
    """i, f, o = sigmoid, g = tanh; c ← f c + i g; m = o tanh(c); h = m, or W_hr m."""

    def prepare(self, a: Tensor, bias: Tensor | None) -> None:  # noqa: D102
        self.all = _with_bias(a, bias)
        self.size = a.shape[2] // 4
        self.gates = [gates.chunk(4, 1) for gates in self.all.unbind()]
        self.tanh_c: list[Tensor] = list(self.all[..., : self.size].unbind())
        self.m: list[Tensor] = list(self.tanh_c)

    def step(self, t: int, *states: Tensor) -> States:  # noqa: D102
        h, c = states
        gates = self.all[t].addmm_(h, self.weight.t())
        gates[:, : 2 * self.size].sigmoid_()
        i, f, g, o = self.gates[t]
        g.tanh_()
        o.sigmoid_()
        c = (f * c).addcmul_(i, g)
        self.tanh_c[t] = c.tanh()
        m = o * self.tanh_c[t]
        if self.projection is None:
            return m, c
        self.m[t] = m
        return m @ self.projection.t(), c

    def buffers(self) -> list[Tensor]:  # noqa: D102
        gates = torch.empty_like(self.all)
        if self.projection is None:
            return [gates, gates]
        return [gates, gates, gates.new_empty(*gates.shape[:2], self.projection.shape[0])]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:  # noqa: D102
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


class Gru(Recurrence):
    """r, z = sigmoid; q = W_hn h + b_hn; n = tanh(W_in x + b_in + r q); h ← n + z (h − n)."""

    def prepare(self, a: Tensor, bias: Tensor | None) -> None:  # noqa: D102
        self.two = a.shape[2] // 3 * 2
        self.bias_n = None if bias is None else bias[self.two :]
        self.all = _with_bias(a, None if bias is None else functional.pad(bias[: self.two], (0, self.two // 2)))
        self.gates = [gates.chunk(3, 1) for gates in self.all.unbind()]
        self.q: list[Tensor] = list(self.all[..., self.two :].unbind())

    def step(self, t: int, *states: Tensor) -> States:  # noqa: D102
        (h,) = states
        self.all[t, :, : self.two].addmm_(h, self.weight[: self.two].t()).sigmoid_()
        r, z, n = self.gates[t]
        self.q[t] = functional.linear(h, self.weight[self.two :], self.bias_n)
        n.addcmul_(r, self.q[t]).tanh_()
        return (torch.lerp(n, h, z),)

    def buffers(self) -> list[Tensor]:  # noqa: D102
        return [torch.empty_like(self.all), torch.empty_like(self.all)]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:  # noqa: D102
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


class Rnn(Recurrence):
    """h ← tanh of the sum."""

    act = staticmethod(torch.tanh_)

    def prepare(self, a: Tensor, bias: Tensor | None) -> None:  # noqa: D102
        self.all = _with_bias(a, bias)

    def step(self, t: int, *states: Tensor) -> States:  # noqa: D102
        return (self.act(self.all[t].addmm_(states[0], self.weight.t())),)

    def buffers(self) -> list[Tensor]:  # noqa: D102
        return [torch.empty_like(self.all)] * 2

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:  # noqa: D102
        self.act_back(grads[0], self.all[t], buffers[0][t])
        return (buffers[0][t] @ self.weight,)

    @staticmethod
    def act_back(grad: Tensor, h: Tensor, out: Tensor) -> None:
        """Into ``out`` the gradient by the sum."""
        _tanh_back(grad, h, grad_input=out)


class ReluRnn(Rnn):
    """h ← max(0, the sum)."""

    act = staticmethod(torch.relu_)

    @staticmethod
    def act_back(grad: Tensor, h: Tensor, out: Tensor) -> None:  # noqa: D102
        torch.mul(grad, h > 0, out=out)


class _Through(torch.autograd.Function):
    """Says that the outputs came from those ``linear`` calls and the first states."""

    @staticmethod
    def forward(ctx: Any, run: Recurrence, outputs: States, *inputs: Tensor) -> States:  # noqa: D102
        ctx.run = run
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return (None, None, *ctx.run.back(*grads))


def _direction(
    kind: type[Recurrence],
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
    live: Tensor | None,
) -> States:
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if has_biases else (None, None)
    w_hr = weights[-1] if len(weights) in (3, 5) else None
    a = functional.linear(x, w_ih, b_ih)
    # Autocast may have made it of another dtype than the rest.
    states = tuple(s.to(a.dtype) for s in states)
    known = [None if w is None else w.detach().to(a.dtype) for w in (w_hh, b_hh, w_hr)]
    with torch.no_grad(), torch._C.DisableTorchFunction():
        run = kind(a.detach(), *known, tuple(s.detach() for s in states), backwards, live)
        outputs = run.outputs()
        del run.after
        h = torch.stack([h for h, *_ in run.before], 1)
        m = torch.stack(run.m, 1) if w_hr is not None else None
    calls = [a, functional.linear(h, w_hh, b_hh)]
    if w_hr is not None:
        calls.append(functional.linear(m, w_hr))
    through: States = _Through.apply(run, outputs, *calls, *states)
    return through


def recurrent(
    kind: type[Recurrence],
    x: Tensor,
    states: States,
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
