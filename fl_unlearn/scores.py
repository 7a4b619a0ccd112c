"""What a model gets right, class by class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass
class ClassScores:
    """What one model gets right, class by class; sums, so that clients' scores add.

    Attributes:
        correct: Label to number of samples classified correctly.
        total: Label to number of samples.
        loss: Label to summed cross-entropy, in nats.
    """

    correct: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)

    def __add__(self, other: ClassScores) -> ClassScores:
        labels = sorted(set(self.total) | set(other.total))
        return ClassScores(
            {c: self.correct.get(c, 0) + other.correct.get(c, 0) for c in labels},
            {c: self.total.get(c, 0) + other.total.get(c, 0) for c in labels},
            {c: self.loss.get(c, 0.0) + other.loss.get(c, 0.0) for c in labels},
        )

    def without(self, labels: Collection[int]) -> ClassScores:
        """These scores less some classes."""
        kept = [c for c in self.total if c not in labels]
        return ClassScores(
            {c: self.correct[c] for c in kept},
            {c: self.total[c] for c in kept},
            {c: self.loss[c] for c in kept},
        )

    def accuracy(self, labels: Sequence[int] | None = None, *, without: Sequence[int] = ()) -> float | None:
        """Share classified correctly, 0 to 1, over ``labels`` (default: all) less ``without``.

        Returns None where there is no sample to measure on: an absent number, not a zero.
        """
        chosen = [c for c in (self.total if labels is None else labels) if c not in set(without)]
        total = sum(self.total.get(c, 0) for c in chosen)
        return sum(self.correct.get(c, 0) for c in chosen) / total if total else None

    def mean_loss(self, labels: Sequence[int] | None = None, *, without: Sequence[int] = ()) -> float | None:
        """Mean cross-entropy in nats over the same selection as `accuracy`, or None without samples."""
        chosen = [c for c in (self.total if labels is None else labels) if c not in set(without)]
        total = sum(self.total.get(c, 0) for c in chosen)
        return sum(self.loss.get(c, 0.0) for c in chosen) / total if total else None
