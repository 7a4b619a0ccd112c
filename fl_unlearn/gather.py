"""The clients' Fisher answers, merged as they arrive: the server's memory does not grow with their number.

Where a defence compares clients with one another, the answers wait in a temporary file until all are in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from fl_unlearn import merge_robust
from fl_unlearn.defence import OFF, Defence
from fl_unlearn.fisher import FisherSums
from fl_unlearn.fisher_bounds import head_violation, is_head
from fl_unlearn.merge import FisherPart, Merging
from fl_unlearn.running import RunningSum
from fl_unlearn.spool import Spool
from fl_unlearn.types import REST, AnswerError, FisherError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    """One group of one client's answer: its place in the spool, its count, and the size of its mean."""

    row: int
    count: int
    sizes: dict[str, float]


class _Reference:
    """The clients' retained Fishers as one, by a rule of `defence.REFERENCE_RULES`."""

    def __init__(self, rule: str) -> None:
        self._kept, self._rest = 0.0, RunningSum()
        robust = merge_robust.REDUCTIONS.get(rule)
        self._spooled = merge_robust.Spooled(robust) if robust else None

    def add(self, sums: Mapping[str, torch.Tensor], count: int, weight: float) -> None:
        if not count:
            return
        self._kept += count * weight
        if self._spooled is not None:
            self._spooled.add({n: t.double() / count for n, t in sums.items()})
        else:
            self._rest.add(sums if weight == 1.0 else {n: t * weight for n, t in sums.items()})

    def result(self) -> dict[str, torch.Tensor]:
        if not self._kept:
            raise FisherError("there is no sample to take the reference Fisher from: nothing is kept")
        if self._spooled is not None:
            return self._spooled.result()
        return {n: t / self._kept for n, t in self._rest.total().items()}


class FisherGather:
    """What the Fisher phase leaves of the clients' answers.

    Args:
        rule: The rule by which forget Fishers are merged (`merge.RULES`); "max-divided" holds one per holder.
        defence: Bounds on what one client's answer can do.
        trained: Client to the largest number of examples it was seen to train on, as far as known.
        head: Whether the scope is a head that the server knows, so that `fisher_bounds` apply.

    Attributes:
        counts: Client to group (a requested class, or `types.REST`) to its number of samples.
        num_classes: How many classes the clients' model has; 0 before the first answer.
        names: The parameters that the answers are about.
        scaled: Clients whose Fisher was scaled down, by `settle`.
    """

    def __init__(
        self,
        rule: str,
        defence: Defence = OFF,
        trained: Mapping[str, int] | None = None,
        *,
        head: bool = False,
    ) -> None:
        self.counts: dict[str, dict[int, int]] = {}
        self.num_classes = 0
        self.names: list[str] = []
        self.scaled: set[str] = set()
        self._defence, self._trained, self._head = defence, dict(trained or {}), head
        self._merging, self._reference = Merging(rule), _Reference(defence.reference_rule)
        self._waiting: dict[str, dict[int, _Waiting]] = {}
        self._wrong: dict[str, str] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._spool: Spool | None = None

    def add(self, client: str, sums: FisherSums) -> None:
        """Take in one client's answer.

        Raises:
            AnswerError: If it is about other parameters or classes than the answers before.
        """
        if self.counts and (sums.names, sums.num_classes) != (self.names, self.num_classes):
            raise AnswerError("other parameters or classes than another client's")
        self.names, self.num_classes = sums.names, sums.num_classes
        self.counts[client] = dict(sums.counts)
        if sums.kind != "normalized" or (self._defence.clip is None and not self._defence.bounds):
            for group, count in sums.counts.items():
                self._take(client, group, sums.sums[group], count, {})
            return
        if self._head and self._defence.bounds and (why := self._violation(sums)) is not None:
            self._wrong[client] = why
        self._shapes = {n: t.shape for n, t in next(iter(sums.sums.values())).items()}
        self._spool = self._spool or Spool(torch.float64)
        waiting = {}
        for group, count in sums.counts.items():
            if count:
                row = self._spool.append(torch.cat([sums.sums[group][n].flatten() for n in self._shapes]))
                sizes = {n: float(t.sum()) / count for n, t in sums.sums[group].items()}
                waiting[group] = _Waiting(row, count, sizes)
        self._waiting[client] = waiting

    def _violation(self, sums: FisherSums) -> str | None:
        if not is_head(next(iter(sums.sums.values())), self.num_classes):
            return None
        absent = [g for g in sums.counts if g != REST]
        for group, count in sums.counts.items():
            if count and (why := head_violation(sums.sums[group], count, group, absent)) is not None:
                return f"no data has such a Fisher: {why}"
        return None

    def settle(self) -> dict[str, str]:
        """Compare the answers: leave out what no data can give, scale down what is too large.

        Returns:
            Clients whose answer is not used, and why; `counts` does not have them any more.
        """
        wrong, self._wrong = self._wrong, {}
        if 2 * len(wrong) >= len(self.counts) and wrong:  # then the model is not what the bounds are about
            log.warning("%d of %d Fishers break the bounds of a head: not used", len(wrong), len(self.counts))
            wrong = {}
        for client in wrong:
            del self.counts[client], self._waiting[client]
        largest = self._largest()
        for client in sorted(self._waiting):
            for group, held in self._waiting[client].items():
                self._take_spooled(client, group, held, largest)
        self._waiting = {}
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        return wrong

    def _largest(self) -> dict[str, float]:
        """By tensor, how large a mean Fisher of it may be; empty where clients cannot be compared."""
        kept = [own[REST].sizes for own in self._waiting.values() if REST in own]
        if self._defence.clip is None or len(kept) < 3:
            return {}
        sizes = {n: [s[n] for s in kept if s[n]] for n in kept[0]}
        return {n: self._defence.clip * median(own) for n, own in sizes.items() if own}

    def _take_spooled(self, client: str, group: int, held: _Waiting, largest: Mapping[str, float]) -> None:
        assert self._spool is not None
        flat = torch.split(self._spool.row(held.row), [s.numel() for s in self._shapes.values()])
        sums = {n: t.reshape(s) for (n, s), t in zip(self._shapes.items(), flat, strict=True)}
        shrink = {n: most / held.sizes[n] for n, most in largest.items() if held.sizes[n] > most}
        if shrink:
            self.scaled.add(client)
        self._take(client, group, sums, held.count, shrink)

    def _take(
        self,
        client: str,
        group: int,
        sums: Mapping[str, torch.Tensor],
        count: int,
        shrink: Mapping[str, float],
    ) -> None:
        sums = {n: t * shrink[n] if n in shrink else t for n, t in sums.items()}
        if group == REST:
            self._reference.add(sums, count, self._weight(client))
        elif count:
            mean = {n: t.double() / count for n, t in sums.items()}
            self._merging.add(FisherPart(client, group, mean, count))

    def _weight(self, client: str) -> float:
        """By what a client's samples count: less than 1 where it claims far more than it trained on."""
        claimed = sum(self.counts[client].values())
        trained = self._trained.get(client, max(self._trained.values(), default=0))
        return min(1.0, self._defence.weight * trained / claimed) if trained else 1.0

    def merged(self) -> dict[str, torch.Tensor]:
        """The holders' forget Fishers, merged (MFIM): parameter name to values, float64; after `settle`.

        Raises:
            FisherError: If nobody holds anything to forget.
        """
        return self._merging.result()

    def reference(self) -> dict[str, torch.Tensor]:
        """The Fisher of what is kept of all clients: parameter name to values, float64; after `settle`.

        Raises:
            FisherError: If nobody keeps anything.
        """
        return self._reference.result()
