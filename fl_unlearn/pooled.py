"""Fisher sums over all clients together, for answers of which the server sees, or can use, only the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fl_unlearn.fisher import FisherSums
from fl_unlearn.merge import FisherPart, Merging
from fl_unlearn.types import REST, FisherError

TOGETHER = "all clients together"
"""Stands for a client where the server does not know which client holds what."""

ABOVE_NOISE = 2.0
"""A forget Fisher counts as far as it exceeds so many standard deviations of its noise; without that, the
noise alone would select values that neither group depends on."""


def flatten(sums: FisherSums, groups: Sequence[int], names: Sequence[str]) -> NDArray[np.float64]:
    """A client's Fisher sums as one vector: for each group its count, then its sums, name by name."""
    pieces = []
    for g in groups:
        pieces.append(np.array([float(sums.counts.get(g, 0))]))
        pieces += [sums.sums[g][n].double().reshape(-1).numpy() for n in names]
    return np.concatenate(pieces)


def length(groups: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> int:
    """How many values `flatten` gives."""
    return len(groups) * (1 + sum(math.prod(s) for s in shapes.values()))


class PooledFisher:
    """What `gather.FisherGather` is for single answers, of their sum.

    Args:
        total: The sum over clients of what `flatten` gave.
        groups: The groups, in its order.
        shapes: Parameter name to shape, in its order.
        num_classes: How many classes the model has.
        rule: The rule by which the classes' Fishers are merged (`merge.RULES`): holders cannot be told apart.
        deviation: Standard deviation of the noise in each sum of squared gradients; 0 for none.
        count_deviation: The same of each count.

    Attributes:
        counts: `TOGETHER` to group to number of samples; one that may be nothing but noise is 0.
        num_classes: As given.
    """

    def __init__(
        self,
        total: NDArray[np.float64],
        groups: Sequence[int],
        shapes: Mapping[str, Sequence[int]],
        num_classes: int,
        rule: str,
        *,
        deviation: float = 0.0,
        count_deviation: float = 0.0,
    ) -> None:
        if total.shape != (length(groups, shapes),):
            raise FisherError(f"a sum of {length(groups, shapes)} values is needed, got {total.shape}")
        self.num_classes, self._rule, self._deviation = num_classes, rule, deviation
        self._sums: dict[int, dict[str, torch.Tensor]] = {}
        counts, at = dict[int, int](), 0
        for g in groups:
            held, at = float(total[at]), at + 1
            counts[g] = round(held) if held >= max(0.5, 4 * count_deviation) else 0
            self._sums[g] = {}
            for name, shape in shapes.items():
                size = math.prod(shape)
                values = total[at : at + size].reshape(tuple(shape)).copy()
                self._sums[g][name], at = torch.from_numpy(values), at + size
        self.counts: dict[str, dict[int, int]] = {TOGETHER: counts}

    def merged(self) -> dict[str, torch.Tensor]:
        """The classes' forget Fishers, merged: parameter name to values, float64.

        Raises:
            FisherError: If nobody holds anything to forget.
        """
        merging = Merging(self._rule)
        for group, count in self.counts[TOGETHER].items():
            if group == REST or not count:
                continue
            above = {n: t - ABOVE_NOISE * self._deviation for n, t in self._sums[group].items()}
            mean = {n: t.clamp(min=0) / count for n, t in above.items()}
            merging.add(FisherPart(TOGETHER, group, mean, count))
        return merging.result()

    def reference(self) -> dict[str, torch.Tensor]:
        """The mean Fisher over what is kept, at least one standard deviation of its noise: float64.

        Raises:
            FisherError: If nobody keeps anything.
        """
        count = self.counts[TOGETHER][REST]
        if not count:
            raise FisherError("there is no sample to take the reference Fisher from: nothing is kept")
        return {n: t.clamp(min=self._deviation) / count for n, t in self._sums[REST].items()}
