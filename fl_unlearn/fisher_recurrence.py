"""One layer and direction of an LSTM, a GRU or an RNN: forwards, and backwards through time, without a graph.

Only what autograd would need of the weights is left out: their own gradients. Steps are computed in place
where that is possible.

Formulas: the documentation of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Fused, and into place: sigmoid_(g, y) is g y (1 − y), tanh_(g, y) is g (1 − y²).
_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back = torch.ops.aten.tanh_backward.grad_input

States = tuple[Tensor, ...]
"""h, and c in an LSTM, each of shape (N, size)."""


def over_time(steps: dict[int, Tensor]) -> Tensor:
    """Tensors (N, size) by step as one, shape (N, T, size)."""
    return torch.stack([steps[t] for t in range(len(steps))], 1)


class Recurrence(ABC):
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


class Lstm(Recurrence):
    """i, f, o = sigmoid, g = tanh; c ← f c + i g; m = o tanh(c); h = m, or W_hr m."""

    def prepare(self, *biases: Tensor) -> None:
        """See `Recurrence.prepare`."""
        self.size = self.all.shape[2] // 4
        self.gates = [gates.chunk(4, 1) for gates in self.all.unbind()]
        self.tanh_c: dict[int, Tensor] = {}
        self.m: dict[int, Tensor] = {}

    def step(self, t: int, *states: Tensor) -> States:
        """See `Recurrence.step`."""
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
        """See `Recurrence.buffers`."""
        gates = torch.empty_like(self.all)
        if self.projection is None:
            return [gates, gates]
        return [gates, gates, gates.new_empty(*gates.shape[:2], self.projection.shape[0])]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        """See `Recurrence.step_back`."""
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

    def outer_bias(self, *biases: Tensor) -> Tensor | None:
        """See `Recurrence.outer_bias`."""
        if not biases:
            return None
        r, z, _ = biases[1].chunk(3)
        return biases[0] + torch.cat([r, z, torch.zeros_like(z)])

    def prepare(self, *biases: Tensor) -> None:
        """See `Recurrence.prepare`."""
        self.two = self.all.shape[2] // 3 * 2
        self.bias_n = biases[1][self.two :] if biases else None
        self.gates = [gates.chunk(3, 1) for gates in self.all.unbind()]
        self.q: dict[int, Tensor] = {}

    def step(self, t: int, *states: Tensor) -> States:
        """See `Recurrence.step`."""
        (h,) = states
        self.all[t, :, : self.two].addmm_(h, self.weight[: self.two].t()).sigmoid_()
        r, z, n = self.gates[t]
        self.q[t] = functional.linear(h, self.weight[self.two :], self.bias_n)
        n.addcmul_(r, self.q[t]).tanh_()
        return (torch.lerp(n, h, z),)

    def buffers(self) -> list[Tensor]:
        """See `Recurrence.buffers`."""
        return [torch.empty_like(self.all), torch.empty_like(self.all)]

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        """See `Recurrence.step_back`."""
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

    def prepare(self, *biases: Tensor) -> None:
        """Nothing: the gates are h."""

    def step(self, t: int, *states: Tensor) -> States:
        """See `Recurrence.step`."""
        return (self.act(self.all[t].addmm_(states[0], self.weight.t())),)

    def buffers(self) -> list[Tensor]:
        """See `Recurrence.buffers`."""
        return [torch.empty_like(self.all)] * 2

    def step_back(self, t: int, buffers: list[Tensor], *grads: Tensor) -> States:
        """See `Recurrence.step_back`."""
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
    def act_back(grad: Tensor, h: Tensor, out: Tensor) -> None:
        """See `Rnn.act_back`."""
        torch.mul(grad, h > 0, out=out)
