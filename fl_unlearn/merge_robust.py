"""Merge rules that a few lying holders cannot lead anywhere: median and trimmed mean, value by value.

They need all holders of a class at once, so what arrives is spooled to a temporary file and reduced piece by
piece: the server's memory does not grow with the number of holders. Both are taken over the holders of one
class, each counting the same whatever number of samples it claims, and then the maximum over the classes, as
a mean over classes would hide what matters to one of them only. With fewer than three holders of a class
there is no majority: the median is then their mean, and so is the trimmed mean.

Source of the rules: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018 (arXiv 1803.01498), there for gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl_unlearn.merge import FisherPart, Maximum, register
from fl_unlearn.spool import Spool

TRIM = 0.3
"""The share of the holders that a trimmed mean leaves out on either side: rounded down, yet one of three."""

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""From values (n, k) to (k,), over the first dimension."""


def median(values: torch.Tensor) -> torch.Tensor:
    """The median of each column; of an even number of values the mean of the two in the middle."""
    ordered = values.sort(dim=0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of each column without its largest and smallest values (`trimmed` of each)."""
    ordered, cut = values.sort(dim=0).values, trimmed(len(values))
    return ordered[cut : len(values) - cut].mean(dim=0)


def trimmed(n: int) -> int:
    """How many of n values are left out on either side; less than half."""
    return min(max(int(TRIM * n), 1), (n - 1) // 2)


REDUCTIONS: dict[str, Reduce] = {"median": median, "trimmed-mean": trimmed_mean}
"""How values of several clients become one, by name."""


class Spooled:
    """Vectors of named tensors that arrive one by one, reduced value by value at the end.

    Args:
        reduce: From the values of all to one.
    """

    def __init__(self, reduce: Reduce) -> None:
        self._reduce, self._spool = reduce, Spool()
        self._shapes: dict[str, torch.Size] = {}

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take one in; all have the same names and shapes, in any order of the names."""
        self._shapes = self._shapes or {n: t.shape for n, t in tensors.items()}
        self._spool.append(torch.cat([tensors[n].double().flatten() for n in self._shapes]))

    def result(self) -> dict[str, torch.Tensor]:
        """All so far, reduced; float64."""
        out = torch.zeros(self._spool.length, dtype=torch.float64)
        for at, values in self._spool.columns([*range(self._spool.count)]):
            out[at] = self._reduce(values)
        sizes = [s.numel() for s in self._shapes.values()]
        parts = zip(self._shapes.items(), torch.split(out, sizes), strict=True)
        return {n: part.reshape(shape) for (n, shape), part in parts}


class Robust:
    """A merge rule that reduces each class over its holders, and takes the maximum over the classes.

    Args:
        reduce: From the values of all holders to one.
    """

    def __init__(self, reduce: Reduce) -> None:
        self._reduce, self._classes = reduce, dict[int, Spooled]()

    def add(self, part: FisherPart) -> None:
        """Take one part in."""
        if part.label not in self._classes:
            self._classes[part.label] = Spooled(self._reduce)
        self._classes[part.label].add(dict(part.mean))

    def result(self) -> dict[str, torch.Tensor]:
        """The merged Fisher so far."""
        largest = Maximum()
        for label, spooled in self._classes.items():
            largest.add(FisherPart("", label, spooled.result(), 1))
        return largest.result()


@register("median")
def _median() -> Robust:
    return Robust(median)


@register("trimmed-mean")
def _trimmed_mean() -> Robust:
    return Robust(trimmed_mean)
