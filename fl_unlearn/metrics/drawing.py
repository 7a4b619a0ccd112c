"""Small samples of a client's data, for measures that cannot afford all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fl_unlearn.batches import filled, map_tensors, take_rows, tensors_in

Batches = list[tuple[Any, Tensor]]

LEAST = 10
"""Training samples of a class at a client, below which they say too little about it."""


def first_of_each_class(batches: Iterable[Any], most: int) -> Batches:
    """The first samples of each class, at most ``most`` of it; all batches are gone through."""
    taken: Counter[int] = Counter()
    kept: Batches = []
    for x, y in filled(batches):
        rows = []
        for row, label in enumerate(y.tolist()):
            if taken[label] < most:
                taken[label] += 1
                rows.append(row)
        if rows:
            chosen = torch.tensor(rows)
            kept.append((take_rows(x, chosen), y[chosen.to(y.device)]))
    return kept


def only(batches: Iterable[Any], classes: Iterable[int]) -> Batches:
    """The samples of some classes."""
    wanted = torch.tensor(sorted(classes), dtype=torch.int64)
    kept: Batches = []
    for x, y in filled(batches):
        rows = torch.isin(y, wanted.to(y.device)).nonzero().squeeze(1)
        if len(rows):
            kept.append((take_rows(x, rows), y[rows]))
    return kept


def joined(batches: Batches) -> tuple[Any, Tensor]:
    """All of them, at least one, as one batch; inputs may be whatever `batches.map_tensors` looks into."""
    columns = zip(*(tensors_in(x) for x, _ in batches), strict=True)
    whole = iter([torch.cat(column) for column in columns])
    return map_tensors(lambda _: next(whole), batches[0][0]), torch.cat([y for _, y in batches])
