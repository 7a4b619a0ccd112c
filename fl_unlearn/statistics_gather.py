"""The clients' statistics of a hidden layer, added up as they arrive, so that memory stays the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from statistics import median_high, median_low

from fl_unlearn.erase_layers import Hidden, Statistics
from fl_unlearn.layer_stats import LayerSums
from fl_unlearn.running import RunningSum


@dataclass(frozen=True)
class LayerAnswers:
    """What the clients together say of one layer.

    Attributes:
        layers: All layers that are asked about, in the order of a forward pass.
        sums: The sums over all clients, one for each model; none if no client has data.
        counts: Client to group to its number of observations; empty for a client without data.
    """

    layers: tuple[Hidden, ...]
    sums: tuple[LayerSums, ...]
    counts: Mapping[str, Mapping[int, int]]


@dataclass
class _Cell:
    """The sums of clients whose outputs are of like size, and as many a sample."""

    tensors: RunningSum = field(default_factory=RunningSum)
    counts: list[dict[int, int]] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)

    def take(self, client: str, sums: tuple[LayerSums, ...]) -> None:
        parts = {f"{i}/second": s.second for i, s in enumerate(sums)}
        parts |= {f"{i}/sum/{g}": t for i, s in enumerate(sums) for g, t in s.sums.items()}
        self.tensors.add(parts)
        self._count([s.counts for s in sums])
        self.clients.add(client)

    def add(self, other: _Cell) -> None:
        self.tensors.add(other.tensors.total())
        self._count(other.counts)

    def _count(self, counts: list[dict[int, int]]) -> None:
        self.counts = self.counts or [{} for _ in counts]
        for own, more in zip(self.counts, counts, strict=True):
            for g, n in more.items():
                own[g] = own.get(g, 0) + n

    def result(self) -> tuple[LayerSums, ...]:
        found = self.tensors.total()
        return tuple(
            LayerSums(own, {g: found[f"{i}/sum/{g}"] for g in own}, found[f"{i}/second"])
            for i, own in enumerate(self.counts)
        )


class StatisticsGather:
    """Takes in one answer after the other.

    Which ones are not plausible shows only when all are there: an answer's outputs may not be many times as
    large as the others', or there may not be many times as many of them. So answers are added apart by the
    powers of two between which both lie and by the layers they name, and whole cells are left out at the end.
    Like answers share a cell.

    Args:
        examples: Client to the largest number of examples that it trained on, where that is known.
    """

    def __init__(self, examples: Mapping[str, int]) -> None:
        self._examples = examples
        self._layers: dict[str, tuple[Hidden, ...]] = {}
        self._counts: dict[str, Mapping[int, int]] = {}
        self._sizes: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._cells: dict[tuple[tuple[Hidden, ...], int, int | None], _Cell] = {}

    def add(self, client: str, answer: Statistics) -> None:
        """Take in one client's answer, checked already."""
        self._counts[client] = dict(answer.counts)
        if not answer.sums:
            return
        self._layers[client] = answer.layers
        size = self._sizes[client] = max(_mean_square(s) for s in answer.sums)
        rate = None
        if client in self._examples:
            rate = max(s.count for s in answer.sums) / max(1, self._examples[client])
            self._rates[client] = rate
        powers = (answer.layers, _power(size), None if rate is None else _power(rate))
        self._cells.setdefault(powers, _Cell()).take(client, answer.sums)

    def result(self, most: int | None = None) -> tuple[LayerAnswers, dict[str, str]]:
        """The sums of what is plausible, and client to reason for what is not.

        Args:
            most: How many times the others' an answer's outputs, and their number, may be, rounded up to a
                power of two; None: all answers count.
        """
        usual, found = self._minority()
        if most is not None and self._sizes:
            found |= self._too_large(most, found)
            found |= self._too_many(most, found)
        total = _Cell()
        for _, cell in sorted(self._cells.items(), key=str):
            if not found.keys() & cell.clients:
                total.add(cell)
        counts = {c: self._counts[c] for c in sorted(self._counts) if c not in found}
        return LayerAnswers(usual, total.result(), counts), found

    def _minority(self) -> tuple[tuple[Hidden, ...], dict[str, str]]:
        """What most say the layers are, of as many the first by name; and those who say otherwise."""
        claims = Counter(self._layers[c] for c in sorted(self._layers))
        if not claims:
            return (), {}
        usual = claims.most_common(1)[0][0]
        why = "other layers to erase in than most clients'"
        return usual, {c: why for c, layers in self._layers.items() if layers != usual}

    def _too_large(self, most: int, others: Container[str]) -> dict[str, str]:
        powers = {c: _power(size) for c, size in self._sizes.items() if c not in others}
        usual = median_high(powers.values())
        return {
            c: f"outputs of mean square {self._sizes[c]:.3g}, where up to 2^{usual} are usual"
            for c, power in powers.items()
            if power > usual + _power(most**2)
        }

    def _too_many(self, most: int, others: Container[str]) -> dict[str, str]:
        powers = {c: _power(rate) for c, rate in self._rates.items() if c not in others}
        usual = max(0, median_low(powers.values())) if powers else 0
        return {
            c: f"{self._rates[c]:.0f} observations for each sample it trained on, where up to {2**usual} are "
            "usual"
            for c, power in powers.items()
            if power > usual + _power(most)
        }


def _mean_square(sums: LayerSums) -> float:
    return float(sums.second.diagonal().sum()) / max(1, sums.count)


def _power(value: float) -> int:
    """The exponent of the smallest power of two that is not below ``value``; that of 0 is the smallest."""
    mantissa, exponent = math.frexp(value)
    return exponent - (mantissa == 0.5) if value > 0 else -1074
