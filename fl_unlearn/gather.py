"""The clients' Fisher answers, merged as they arrive: the server's memory does not grow with their number."""

from __future__ import annotations

import torch

from fl_unlearn import evidence
from fl_unlearn.fisher import FisherSums
from fl_unlearn.merge import Merging
from fl_unlearn.running import RunningSum
from fl_unlearn.types import REST, AnswerError, FisherError


class FisherGather:
    """What the Fisher phase leaves of the clients' answers.

    Args:
        rule: The rule by which forget Fishers are merged (`merge.RULES`); "max-divided" holds one per holder.

    Attributes:
        counts: Client to group (a requested class, or `types.REST`) to its number of samples.
        num_classes: How many classes the clients' model has; 0 before the first answer.
    """

    def __init__(self, rule: str) -> None:
        self.counts: dict[str, dict[int, int]] = {}
        self.num_classes = 0
        self._names: list[str] = []
        self._merging = Merging(rule)
        self._rest, self._kept = RunningSum(), 0

    def add(self, client: str, sums: FisherSums) -> None:
        """Take in one client's answer.

        Raises:
            AnswerError: If it is about other parameters or classes than the answers before.
        """
        if self.counts and (sums.names, sums.num_classes) != (self._names, self.num_classes):
            raise AnswerError("other parameters or classes than another client's")
        self._names, self.num_classes = sums.names, sums.num_classes
        for part in evidence.parts({client: sums}):
            self._merging.add(part)
        self._rest.add(sums.sums[REST])
        self._kept += sums.counts[REST]
        self.counts[client] = dict(sums.counts)

    def merged(self) -> dict[str, torch.Tensor]:
        """The holders' forget Fishers, merged (MFIM): parameter name to values, float64.

        Raises:
            FisherError: If nobody holds anything to forget.
        """
        return self._merging.result()

    def reference(self) -> dict[str, torch.Tensor]:
        """The mean Fisher over what is kept of all clients: parameter name to values, float64.

        Raises:
            FisherError: If nobody keeps anything.
        """
        if not self._kept:
            raise FisherError("there is no sample to take the reference Fisher from: nothing is kept")
        return {n: t / self._kept for n, t in self._rest.total().items()}
