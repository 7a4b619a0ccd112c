"""What the paper (arXiv 2408.08493) claims, beside what was measured here."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.figures.inherited.drawing import look_of
from simulations.figures.inherited.records import Record, distinct, mean_of, values
from simulations.inheritance.results import BEFORE, RETRAINED

SINGLE, SEVERAL = (0.0, 0.9453), (0.0107, 0.8477)
"""Accuracy on the forgotten labels and on all others, for a single class and for several."""

FASTER = 0.99
"""Less time than the alternatives take."""

PAPER_DATA = "CIFAR-100, TinyImageNet, ImageNet and Yahoo! Answers"
SAME_DATA = ("cifar100", "tiny-imagenet", "yahoo")
"""What the paper measured on, and what has a name of its own here; ImageNet is a folder like others."""


def compared(records: Sequence[Record], claim: tuple[float, float]) -> list[str]:
    """The paper's accuracies and time beside each method's, and what makes them hard to compare.

    Args:
        records: Of `records.every_row`; only affected models count.
        claim: Forgotten and retained accuracy.
    """
    hit = [r for r in records if r["affected"]]
    forget, kept = claim
    lines = [
        f"the paper's claim: {forget:.2%} forgotten, {kept:.2%} on the other labels, {FASTER:.0%} less time"
    ]
    lines += [_line(way, hit) for way in distinct(hit, "method")]
    lines.append(
        f"({_note(records)} Means over the affected models of "
        f"{len(distinct(records, 'experiment'))} experiment(s), on test samples.)"
    )
    return lines


def _line(way: str, hit: Sequence[Record]) -> str:
    own = [r for r in hit if r["method"] == way]
    refused = distinct([r for r in own if r.get("refused")], "experiment")
    text = f"{look_of(way).label}: {percent(mean_of(own, 'forget'))} and {percent(mean_of(own, 'retained'))}"
    if way not in (BEFORE, RETRAINED) and (share := spared(hit, way)) is not None:
        more_or_less = f"{share:.1%} less" if share > 0 else "more"
        text += f", at {1 - share:.1%} of the owners' computing time of retraining ({more_or_less})"
    return text + (f"; refused in {', '.join(refused)}" if refused else "")


def spared(hit: Sequence[Record], way: str) -> float | None:
    """Which share of the owners' time for retraining a way saves, over all experiments; None: not known.

    Experiments in which it refused do not count: there is nothing to compare.
    """
    took, again = 0.0, 0.0
    for name in distinct(hit, "experiment"):
        own = [r for r in hit if r["experiment"] == name]
        mine = values([r for r in own if r["method"] == way and not r.get("refused")], "owner_seconds")
        theirs = values([r for r in own if r["method"] == RETRAINED], "owner_seconds")
        if mine and theirs:
            took, again = took + mine[0], again + theirs[0]
    return 1 - took / again if again else None


def _note(records: Sequence[Record]) -> str:
    """What makes the paper's numbers others than these: its data, the size of its networks."""
    text = "The paper's numbers are means over its scenarios, networks and data sets"
    if others := distinct([r for r in records if r["dataset"] not in SAME_DATA], "data"):
        text += f"; it measured on {PAPER_DATA}, and this is other data: {'; '.join(others)}"
    if any(r["size"] == "small" for r in records):
        text += "; its networks have their full size, and these are small ones"
    return text + "."


def percent(share: float | None) -> str:
    """A share in words."""
    return "not measured" if share is None else f"{share:.2%}"
