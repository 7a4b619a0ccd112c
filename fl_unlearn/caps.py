"""How much of a model one update may select: whatever the Fishers say, most of each retained class stays."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from fl_unlearn.defence import Defence
from fl_unlearn.update import DampeningUpdate, Entry

IsHead = Callable[[str], bool]
"""Whether a tensor is a head's, with one row a class."""


def capped(
    update: DampeningUpdate, defence: Defence, forgotten: Collection[int], is_head: IsHead
) -> DampeningUpdate:
    """An update with as many elements as the caps allow: those with the smallest factors, first ones first.

    It holds for every `DampeningUpdate.variant` of it too: they select the smallest factors of these.

    Args:
        update: What the Fishers select.
        defence: The caps.
        forgotten: Classes whose rows may be selected whole.
        is_head: Tensors with one row a class: there the cap is for each row of a matrix. A bias is left
            alone, for it has one value a class.
    """
    entries = {}
    for name, entry in update.entries.items():
        head = is_head(name)
        if head and len(entry.spec.shape) == 1:
            entries[name] = entry
            continue
        rows, width, most = _groups(entry, defence, head)
        keep = _smallest(entry.factors, rows, width, most, exempt=forgotten if head else ())
        if bool(keep.all()):
            entries[name] = entry
        elif bool(keep.any()):
            entries[name] = Entry(entry.indices[keep], entry.factors[keep], entry.spec)
    if entries.keys() == update.entries.keys() and all(entries[n] is update.entries[n] for n in entries):
        return update
    return DampeningUpdate(entries, update.threshold, update.dampening, update.erasures)


def exceeds(
    update: DampeningUpdate, defence: Defence, forgotten: Collection[int], is_head: IsHead
) -> str | None:
    """The tensor in which an update selects more than the caps allow, or None."""
    kept = capped(update, defence, forgotten, is_head)
    for name, entry in update.entries.items():
        if name not in kept.entries or len(kept.entries[name].indices) < len(entry.indices):
            return name
    return None


def _groups(entry: Entry, defence: Defence, head: bool) -> tuple[torch.Tensor, int, float]:
    """Of each selected element its group (a row of a head, or the tensor); a group's size; its cap."""
    size = 1
    for length in entry.spec.shape:
        size *= length
    if not head:
        return torch.zeros_like(entry.indices, dtype=torch.int64), size, defence.tensor_share
    width = size // entry.spec.shape[0]
    return entry.indices.to(torch.int64) // width, width, defence.row_share


def _smallest(
    factors: torch.Tensor, groups: torch.Tensor, width: int, share: float, exempt: Collection[int]
) -> torch.Tensor:
    """Which elements stay: in each group the ``share`` of its ``width`` with the smallest factors."""
    most = int(share * width)
    order = torch.argsort(factors, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]  # group by group, smallest factors first
    ordered = groups[order]
    starts = torch.searchsorted(ordered, ordered)  # where each element's group begins
    keep = torch.zeros(len(factors), dtype=torch.bool)
    keep[order] = torch.arange(len(order)) - starts < most
    if exempt:
        keep |= torch.isin(groups, torch.tensor(sorted(exempt), dtype=torch.int64))
    return keep
