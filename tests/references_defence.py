"""Slow, obvious implementations of what defends a request: robust merges, caps, votes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import mean, median


def middle(values: Sequence[float], rule: str) -> float:
    """Of one value of each holder: their median, or the mean of what is left between the extremes."""
    if rule == "median":
        return median(values)
    n = len(values)
    cut = int(0.3 * n)
    if cut == 0 and n >= 3:
        cut = 1
    return mean(sorted(values)[cut : n - cut])


def kept_of_row(factors: dict[int, float], width: int, share: float) -> set[int]:
    """Positions that a cap leaves in one row: one after another the smallest, the first of equal ones."""
    left, kept = dict(factors), set()
    while left and len(kept) < int(share * width):
        smallest = min(left, key=lambda i: (left[i], i))
        kept.add(smallest)
        del left[smallest]
    return kept


Claim = tuple[str, int, float, float]
"""Client, class, weight, value."""


def winsorised(claims: Sequence[Claim], liars: int) -> float:
    """Class by class, the extreme values replaced by the nearest of the others; then the weighted mean."""
    total = 0.0
    for label in {c[1] for c in claims}:
        own = sorted((c for c in claims if c[1] == label), key=lambda c: c[3])
        values = [c[3] for c in own]
        for step in range(liars):
            if len(own) - 2 * (step + 1) < 1:
                break
            for i in range(step + 1):
                values[i] = own[step + 1][3]
                values[-1 - i] = own[-2 - step][3]
        part = sum(c[2] * v for c, v in zip(own, values, strict=True))
        total += max(part, 0.0) if liars and len(own) < 3 else part
    return total / sum(c[2] for c in claims)


def by_client(claims: Sequence[Claim], liars: int) -> float:
    """The same, of all that each client claims: its mean, as if of one class that all of them hold."""
    own = {}
    for client in {c[0] for c in claims}:
        weight = sum(c[2] for c in claims if c[0] == client)
        own[client] = (client, 0, weight, sum(c[2] * c[3] for c in claims if c[0] == client) / weight)
    ordered = sorted(own.values(), key=lambda c: c[3])
    cut = min(liars, (len(ordered) - 1) // 2)
    values = [c[3] for c in ordered]
    values = [min(max(v, values[cut]), values[len(values) - 1 - cut]) for v in values]
    return sum(c[2] * v for c, v in zip(ordered, values, strict=True)) / sum(c[2] for c in ordered)


def least(claims: Sequence[Claim], liars: int) -> float:
    """The smallest weighted mean over all ways to leave out up to so many clients."""
    clients = sorted({c[0] for c in claims})
    best = float("inf")
    for n in range(liars + 1):
        for out in combinations(clients, n):
            left = [c for c in claims if c[0] not in out]
            if weight := sum(c[2] for c in left):
                best = min(best, sum(c[2] * c[3] for c in left) / weight)
    return best
