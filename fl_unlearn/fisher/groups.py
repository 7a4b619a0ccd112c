"""Float64 sums of squared gradients, apart for each group of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def split_groups(groups: Tensor) -> list[tuple[int, Tensor]]:
    """Each group present in ``groups`` (N,), with the rows that belong to it."""
    present, sizes = torch.unique(groups, return_counts=True)
    rows = torch.split(groups.argsort(stable=True), sizes.tolist())
    return list(zip(present.tolist(), rows, strict=True))


class GroupSums:
    """Float64 accumulators: one tensor per group and distinct parameter, made when a group first occurs.

    ``names`` are those of the parameters asked for; the names of one tied parameter share one accumulator.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        named = dict(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        for n in names:
            first.setdefault(id(named[n]), n)
        self.primary = {n: first[id(named[n])] for n in names}
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in first.values()}
        self.sums: dict[int, dict[str, Tensor]] = {}
        self.counts: dict[int, int] = {}

    def of(self, group: int, count: int = 0) -> dict[str, Tensor]:
        """The accumulators of ``group``, its count raised by ``count``."""
        self.counts[group] = self.counts.get(group, 0) + count
        if group not in self.sums:
            self.sums[group] = {
                n: torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
                for n, p in self.parameters.items()
            }
        return self.sums[group]

    def result(self, dtype: torch.dtype) -> dict[int, dict[str, Tensor]]:
        """The sums on the CPU in ``dtype``, groups ascending, under every name asked for."""
        moved = {g: {n: t.to("cpu", dtype) for n, t in self.sums[g].items()} for g in sorted(self.sums)}
        return {g: {n: sums[p] for n, p in self.primary.items()} for g, sums in moved.items()}
