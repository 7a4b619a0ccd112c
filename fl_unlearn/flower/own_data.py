"""A client's own data, as a question of the server parts it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from fl_unlearn.batches import filled, take_rows
from fl_unlearn.flower import records
from fl_unlearn.types import MeasureError

Batches = list[tuple[Any, Tensor]]


def groups(client: str, record: ConfigRecord) -> tuple[list[int], list[int]]:
    """The classes that a question asks of this client, and those whose samples it leaves out."""
    named = records.list_of(record, "clients")
    classes = records.ints(record, "classes") if not named or client in named else []
    return classes, sorted(set(records.ints(record, "ignored")) - set(classes))


def split(data: Any) -> tuple[Any, ...]:
    """(training, held-out) when ``data`` is a pair of loaders, else (training,); held-out may be None.

    Raises:
        MeasureError: If there is no training loader.
    """
    parts: tuple[Any, ...] = (data,)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], torch.Tensor):
        parts = data if data[1] is not None else data[:1]
    if parts[0] is None:
        raise MeasureError(
            "`data` gave None for this client's training loader; return a loader, an empty list where a "
            "client has no training samples, or (training, held-out)"
        )
    return parts


def part(
    batches: Iterable[Any], classes: Collection[int], *, named: bool = True
) -> Iterator[tuple[Any, Tensor]]:
    """The samples of the named classes, or those of all others, in their batches; empty batches are left out.

    Args:
        batches: Batches as `batches.unpack` takes them.
        classes: Labels.
        named: Whether these are wanted, or all others.
    """
    labels = torch.tensor(sorted(classes), dtype=torch.int64)
    for x, y in filled(batches):
        rows = (torch.isin(y, labels.to(y.device)) == named).nonzero().squeeze(1)
        if len(rows):
            yield take_rows(x, rows), y[rows]
