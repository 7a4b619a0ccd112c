"""The clients' scores as votes: what a few liars among them cannot change, in either direction.

Sums alone let one client pass a harmful candidate (it claims gains), or block every good one (it claims that
all is lost). So two more numbers are taken of each candidate on the current model, besides the sums:

* *trimmed*: within each class, the f largest and the f smallest of its holders' values are replaced by the
  nearest of the others (winsorised), then all are averaged by their numbers of samples. With f liars among at
  least 2f + 1 holders of a class, every value used lies among the honest holders' values: a class that all of
  them lost counts as lost, one that none of them lost counts as kept. Of fewer holders, as many are replaced
  as leaves one between; a class of one or two holders is taken at its word, but a gain in it counts as none
  (unless ``gains`` says otherwise), so that it cannot make up for a loss elsewhere.
  The loss on the retained data is also taken client by client, not class by class, and the greater one
  counts: what each client loses in few samples of many classes must not be cut away in each.
* *least*: the sums without the f clients that say the worst.

A candidate passes when sums and trimmed values are within the limits. Where sums are not, but trimmed and
least values are, it passes as *disputed*, and is taken only if no other passes: f clients at most stand
against it, and other holders of the same classes say otherwise.

What it does not stand: liars that are the majority of a class's holders; one of two holders; a client that
invents a class which nobody else holds and calls it lost (the sums move by its share of the samples, which
the limit may not bear: a refusal that names it, and nothing is changed; `Defence.distrusted` is the way
out); harm to a class that liars and fewer honest holders than liars share. Which of the candidates that pass
is taken can be influenced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl_unlearn.types import ClassScores

Said = tuple[float, int]
"""An accuracy, 0 to 1, and the number of samples it was measured on; (0.0, 0): on none."""

SaidBy = Mapping[str, tuple[Said, Said]]
"""Client to what it says of the forgotten data, and of the other."""


def differs(then: Said, now: Said, tolerance: float) -> bool:
    """Whether two accuracies differ by more than ``tolerance`` and what other samples would explain."""
    if not (then[1] and now[1]):
        return False
    p = min(max((then[0] + now[0]) / 2, 0.01), 0.99)
    noise = 3 * (p * (1 - p) * (1 / then[1] + 1 / now[1])) ** 0.5
    return bool(abs(then[0] - now[0]) > tolerance + noise)


@dataclass(frozen=True)
class Verdict:
    """What the votes say of one candidate, on the current model; accuracies 0 to 1.

    Attributes:
        forget: Trimmed accuracy on the forgotten data; None without any.
        drop: Trimmed loss of accuracy on the retained data, class by class or client by client, whichever is
            more; None without any.
        least_forget: The same accuracy by sums, without the f clients that report the highest.
        least_drop: The same loss by sums, without the f clients that report the greatest.
    """

    forget: float | None
    drop: float | None
    least_forget: float
    least_drop: float


@dataclass(frozen=True)
class _Ballot:
    """One client's counts on the current model; ``correct`` has the shape (candidates, labels)."""

    client: str
    labels: np.ndarray
    forgotten: np.ndarray
    total: np.ndarray
    correct: np.ndarray
    weight: float


class Votes:
    """Ballots of the clients, a few hundred bytes to a few KB each.

    Args:
        classes: The classes to forget.
        clients: The only clients whose samples of these are to be forgotten; none: all clients.
        liars: The share of the clients whose word must not decide (`Defence.liars`).
        weight: At most as many times the examples a client was seen to train on do its samples count.
        trained: Client to that number of examples, as far as known.
        gains: Whether what one or two holders of a class gain makes up for what others lose.
    """

    def __init__(
        self,
        classes: Collection[int],
        clients: Collection[str] = (),
        *,
        liars: float = 0.0,
        weight: float = float("inf"),
        trained: Mapping[str, int] | None = None,
        gains: bool = False,
    ) -> None:
        self._gains = gains
        self._classes, self._clients = sorted(classes), set(clients)
        self._share, self._most, self._trained = liars, weight, dict(trained or {})
        self._ballots: list[_Ballot] = []

    @property
    def liars(self) -> int:
        """How many liars among those who voted are stood."""
        return int(self._share * len(self._ballots))

    def add(self, client: str, scores: Sequence[ClassScores]) -> None:
        """Take in one client's scores of the current model: as it is, then under each candidate."""
        labels = np.array([c for c, n in scores[0].total.items() if n], dtype=np.int64)
        total = np.array([scores[0].total[int(c)] for c in labels], dtype=np.int64)
        kind = np.min_scalar_type(int(total.max(initial=0)))
        correct = np.array([[s.correct.get(int(c), 0) for c in labels] for s in scores], dtype=kind)
        named = not self._clients or client in self._clients
        forgotten = np.isin(labels, self._classes) & named
        known = self._trained.get(client, max(self._trained.values(), default=0))
        weight = min(1.0, self._most * known / total.sum()) if known and len(total) else 1.0
        self._ballots.append(_Ballot(client, labels, forgotten, total, correct, weight))
        self._ballots.sort(key=lambda b: b.client)

    def verdict(self, candidate: int) -> Verdict:
        """What is said of a candidate, by its number from 1 up.

        Args:
            candidate: Its place in the scores of `add`; 0 is the model as it is.
        """
        forget, drop = (self._claims(candidate, forgotten=part) for part in (True, False))
        return Verdict(
            self._trimmed(*forget),
            self._loss(*drop),
            self._least(self.liars, *forget)[0],
            self._least(self.liars, *drop)[0],
        )

    def against(self, candidate: int, forget: float, drop: float) -> tuple[str, ...]:
        """The fewest clients without whose word both sums are within their limits, in order of their names.

        Args:
            candidate: As in `verdict`.
            forget: The largest accuracy on the forgotten data.
            drop: The largest loss of accuracy on the retained data.

        Returns:
            At most f for either sum; empty if the sums are beyond the limits without those too.
        """
        against: set[str] = set()
        for forgotten, limit in ((True, forget), (False, drop)):
            claims = self._claims(candidate, forgotten=forgotten)
            left_out = (self._least(few, *claims) for few in range(self.liars + 1))
            found = next((clients for value, clients in left_out if value <= limit), None)
            if found is None:
                return ()
            against.update(found)
        return tuple(sorted(against))

    def accuracy(self, shares: Mapping[int, int]) -> float | None:
        """Trimmed accuracy of the model as it is on some classes, client by client.

        Args:
            shares: Class to how much it counts.

        Returns:
            0 to 1; None if nobody holds one of them.
        """
        values, weights = [], []
        for b in self._ballots:
            part = np.array([shares.get(int(c), 0) for c in b.labels], dtype=np.float64)
            if len(part) and part.any():
                values.append(float((part * b.correct[0] / b.total).sum() / part.sum()))
                weights.append(b.weight * float(b.total[part > 0].sum()))
        if not values:
            return None
        return float((np.array(weights) * self._winsorised(np.array(values))).sum() / sum(weights))

    def said(self, candidate: int) -> dict[str, tuple[Said, Said]]:
        """What each client says of a candidate: on the forgotten and on the retained data."""
        out = {}
        for b in self._ballots:
            parts = []
            for at in (b.forgotten, ~b.forgotten):
                samples = int(b.total[at].sum())
                parts.append((int(b.correct[candidate, at].sum()) / samples if samples else 0.0, samples))
            out[b.client] = (parts[0], parts[1])
        return out

    def _claims(self, candidate: int, *, forgotten: bool) -> tuple[np.ndarray, ...]:
        """For each client and class: number of the ballot, label, weight, and what it claims."""
        who, labels, weights, values = [], [], [], []
        for i, b in enumerate(self._ballots):
            at = b.forgotten == forgotten
            share = b.correct[candidate, at] / b.total[at]
            values.append(share if forgotten else b.correct[0, at] / b.total[at] - share)
            labels.append(b.labels[at])
            weights.append(b.weight * b.total[at])
            who.append(np.full(int(at.sum()), i))
        parts = (who, labels, weights, values)
        return tuple(np.concatenate(p) if p else np.zeros(0) for p in parts)

    def _trimmed(
        self, _: np.ndarray, labels: np.ndarray, weights: np.ndarray, values: np.ndarray
    ) -> float | None:
        if not len(values):
            return None
        total = 0.0
        for label in np.unique(labels):
            own, w = values[labels == label], weights[labels == label]
            part = float((w * self._winsorised(own)).sum())
            alone = self.liars and len(own) < 3 and not self._gains
            total += max(part, 0.0) if alone else part
        return total / float(weights.sum())

    def _loss(
        self, who: np.ndarray, labels: np.ndarray, weights: np.ndarray, values: np.ndarray
    ) -> float | None:
        """The trimmed mean by classes, or that by clients, if that is more.

        Of a class each client may hold so few samples that the few it loses are always those that are cut.
        """
        by_class = self._trimmed(who, labels, weights, values)
        if by_class is None:
            return None
        said, size = self._by_client(who, weights, values)
        held = size > 0
        by_client = size[held] * self._winsorised(said[held] / size[held])
        return max(by_class, float(by_client.sum() / size.sum()))

    def _by_client(
        self, who: np.ndarray, weights: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each client's claims add up to, and their weights."""
        said, size = np.zeros(len(self._ballots)), np.zeros(len(self._ballots))
        np.add.at(said, who.astype(int), weights * values)
        np.add.at(size, who.astype(int), weights)
        return said, size

    def _winsorised(self, values: np.ndarray) -> np.ndarray:
        cut, ordered = min(self.liars, (len(values) - 1) // 2), np.sort(values)
        return values.clip(ordered[cut], ordered[len(values) - 1 - cut])

    def _least(
        self, few: int, who: np.ndarray, _: np.ndarray, weights: np.ndarray, values: np.ndarray
    ) -> tuple[float, tuple[str, ...]]:
        """The smallest weighted mean that leaving out clients gives (Dinkelbach's iteration), and those."""
        said, size = self._by_client(who, weights, values)
        if not size.sum():
            return 0.0, ()
        mean, out = said.sum() / size.sum(), np.zeros(0, dtype=int)
        while few:
            excess = said - mean * size
            worst = np.argsort(-excess, kind="stable")[:few]
            worst = worst[excess[worst] > 0]
            left = size.sum() - size[worst].sum()
            better = (said.sum() - said[worst].sum()) / left if left else mean
            if not better < mean - 1e-12:
                break
            mean, out = better, worst
        return float(mean), tuple(self._ballots[i].client for i in out)
