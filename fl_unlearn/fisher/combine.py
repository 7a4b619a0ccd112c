"""Uses made of other uses: a parameter that is used several times, or in another form than its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import LinearUse
from .uses import Parts, Use


class SumUse(Use):
    """Several uses of one parameter in one pass: gradients add up before they are squared.

    Args:
        uses: Uses of the same shape, one or more.
    """

    def __init__(self, uses: Sequence[Use]) -> None:
        self.shape = uses[0].shape
        self.uses = uses

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        total = self.uses[0].gradients(rows)
        for use in self.uses[1:]:
            total = total + use.gradients(rows)
        return total


class ReshapedUse(Use):
    """A use of a parameter as if dimensions of size 1 were added to it or taken away.

    Args:
        use: The use of the other shape.
        shape: The parameter's own.
    """

    def __init__(self, use: Use, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.use = use

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        return self.use.gradients(rows).reshape(len(rows), *self.shape)

    def add_squares(self, parts: Parts, budget: int) -> None:
        """See `Use.add_squares`."""
        self.use.add_squares([(rows, total.view(self.use.shape)) for rows, total in parts], budget)


class DerivedUse(Use):
    """A use of what was computed from a parameter, such as a part of it or its weight-normalised form.

    Args:
        use: The use of the derived value.
        value: The derived value, with its graph.
        parameter: The leaf of that graph to differentiate by.
    """

    def __init__(self, use: Use, value: Tensor, parameter: Tensor) -> None:
        self.shape = tuple(parameter.shape)
        self.use = use
        self.value = value
        self.parameter = parameter

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        g = self.use.gradients(rows)
        # The graph has its own dtype, in which the faint gradients of a wider one would vanish.
        scale = g.abs().amax().clamp_min(torch.finfo(g.dtype).tiny)
        (out,) = torch.autograd.grad(
            self.value,
            self.parameter,
            (g / scale).to(self.value.dtype),
            retain_graph=True,
            is_grads_batched=True,
        )
        return out.to(g.dtype) * scale  # not in place: out may be expanded


def combined(uses: Sequence[Use]) -> Use:
    """One use in place of all ``uses`` of a parameter in a pass."""
    if len(uses) == 1:
        return uses[0]
    linear = [u for u in uses if type(u) is LinearUse]
    if len(linear) < len(uses):
        return SumUse(uses)
    # Positions of one sample, dimension 1, are summed by the kernel itself, which is faster than use by use.
    return LinearUse(torch.cat([u.x for u in linear], 1), torch.cat([u.g for u in linear], 1))
