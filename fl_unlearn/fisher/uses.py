"""One use of one parameter in a forward pass, as seen once the gradient of its output is known.

A *use* is one call of a function such as ``linear`` or ``conv2d`` with a parameter as weight or bias. From
the call's input and the gradient by its output, every sample's gradient by the parameter follows; what the
Fisher diagonal needs is the sum over samples of its square. Most functions have a cheaper way to that sum
than to form each sample's gradient first: they override `Use.add_squares`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Parts = Sequence[tuple[Tensor, Tensor]]
"""Pairs of row numbers (int64, shape (k,)) and the float64 total, shaped like the parameter, they add to."""


class Use(ABC):
    """Base of all uses.

    Attributes:
        shape: The parameter's shape.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def gradients(self, rows: Tensor) -> Tensor:
        """Each sample's gradient by the parameter.

        Args:
            rows: Numbers of the samples, int64, shape (k,).

        Returns:
            Shape (k, *shape), in float32 or better.
        """

    def add_squares(self, parts: Parts, budget: int) -> None:
        """Add to each total the sum over its rows of the squared gradients.

        Args:
            parts: Rows, and where their sum goes. A row is in one part at most.
            budget: Bytes that temporary tensors may take, at least one sample's gradient being allowed.
        """
        at_once = max(1, budget // (8 * 2 * max(1, math.prod(self.shape))))
        for rows, total in parts:
            for some in torch.split(rows, at_once):
                total += self.gradients(some).double().square().sum(0)
