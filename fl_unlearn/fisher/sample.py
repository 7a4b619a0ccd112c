"""Computing the reference Fisher over a random part of its rows.

The reference is the group `types.REST`: every sample that a request does not name. What is forgotten is
never thinned: its samples are few, and they decide what is selected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_unlearn.batches import unpack
from fl_unlearn.types import REST, FisherError, share_problem

log = logging.getLogger(__name__)


class Thinning:
    """Chooses rows of the reference as they come by.

    A share keeps each row with that probability, by a draw that depends on the seed and the row's place in
    the data only: the same rows whatever the scope, the kind or the classes asked for. A number keeps
    exactly so many, every set of them being equally likely (all, if there are no more).

    With k of n rows used, the sum over them times n / k estimates the sum over all n: given k > 0, without
    bias. It goes with the count n, so that answers of clients of different size still add with their weights.

    Args:
        share: The share, a float above 0 and up to 1.0, or the number of rows, from 2 up.
        seed: Of the draws.
        available: How many rows the reference has; needed for a number (see `count_rest`).

    Attributes:
        seen: Rows of the reference that have come by.
        used: How many of them were chosen.

    Raises:
        FisherError: If the share makes no sense, or a number comes without ``available``.
    """

    def __init__(self, share: float | int, seed: int = 0, available: int | None = None) -> None:
        if (problem := share_problem(share)) is not None:
            raise FisherError(problem)
        self.seen = self.used = 0
        self._share, self._available = share, available
        self._draws = np.random.default_rng(seed)
        self._chosen: np.ndarray | None = None
        if not isinstance(share, float):
            if available is None:
                raise FisherError(f"to draw {share} rows, the reference's size must be known: give available")
            self._chosen = np.zeros(available, dtype=bool)
            self._chosen[self._draws.permutation(available)[:share]] = True

    def rows(self, groups: Tensor) -> Tensor:
        """Which rows of a batch to use.

        Args:
            groups: The rows' groups, int64, shape (N,).

        Returns:
            Row numbers, ascending, on the device of ``groups``: those of other groups than the reference all.

        Raises:
            FisherError: If more rows come than there were to be.
        """
        use = (groups != REST).cpu().numpy()
        rest = ~use
        if self._chosen is None:
            use |= self._draws.random(len(use)) < self._share
        else:
            drawn = self._chosen[self.seen : self.seen + int(rest.sum())]
            self._check(self.seen + int(rest.sum()), exactly=False)
            use[rest] = drawn
        self.seen += int(rest.sum())
        self.used += int((use & rest).sum())
        return torch.from_numpy(use.nonzero()[0]).to(groups.device)

    def scale(self) -> float:
        """By what to multiply the sums of the rows used; 0.0 when none was, which leaves no estimate.

        Raises:
            FisherError: If fewer rows came than there were to be.
        """
        if self._chosen is not None:
            self._check(self.seen, exactly=True)
        if not self.used:
            if self.seen:
                log.warning("none of the %d rows of the reference was drawn; raise the share", self.seen)
            return 0.0
        return self.seen / self.used

    def _check(self, came: int, *, exactly: bool) -> None:
        if self._available is not None and (came > self._available or (exactly and came != self._available)):
            raise FisherError(
                f"the reference was counted as {self._available} rows, then {came} came: the loader must "
                "give the same samples every time; a share (a float) needs no count"
            )


def count_rest(loader: Iterable[Any], apart: Tensor) -> int:
    """How many rows have a label that is not in ``apart``; the model is not called.

    Raises:
        FisherError: If ``loader`` can be gone through only once.
    """
    if isinstance(loader, Iterator):
        raise FisherError(
            "a number of rows is drawn after counting them, so the loader is gone through twice; this one "
            "can be gone through once: give a DataLoader or a list, or a share (a float) instead of a number"
        )
    labels = (unpack(batch)[1] for batch in loader)
    return sum(int((~torch.isin(y, apart.to(y.device))).sum()) for y in labels)
