"""Sums to which terms are added as they arrive, and which do not depend on the order of arrival."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class RunningSum:
    """A sum of dictionaries of tensors, in float64 with the rounding errors summed apart (Neumaier 1974).

    Answers arrive in any order, and plain sums would differ in their last bits from run to run. With the
    errors added at the end, the total is the exact one rounded, but for cases as rare as ties.
    """

    def __init__(self) -> None:
        self._sum: dict[str, torch.Tensor] = {}
        self._error: dict[str, torch.Tensor] = {}

    def add(self, term: Mapping[str, torch.Tensor]) -> None:
        """Add one term; all terms have the same names and shapes."""
        for name, tensor in term.items():
            value = tensor.double()
            if name not in self._sum:
                self._sum[name], self._error[name] = value.clone(), torch.zeros_like(value)
                continue
            old = self._sum[name]
            new = old + value
            larger = old.abs() >= value.abs()
            self._error[name] += torch.where(larger, (old - new) + value, (value - new) + old)
            self._sum[name] = new

    def total(self) -> dict[str, torch.Tensor]:
        """The sum of all terms so far; empty before the first."""
        return {n: t + self._error[n] for n, t in self._sum.items()}
