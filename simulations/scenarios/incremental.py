"""One model that learns more classes, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.labels import to_forget

SHARES = (0.90, 0.92, 0.94, 0.98)
"""The paper's: share of the classes that each of four stages has seen."""


def incremental(num_classes: int, forget: Iterable[int] | None = None, length: int | None = None) -> Scenario:
    """The paper's chain of class-incremental learning, 4 stages long: u0 to u3.

    The stages have the first 90, 92, 94 and 98 of 100 classes; class 0, which all of them have, is forgotten,
    and u0 is the root. All stages share one head over the union of the labels: a class that comes later has
    its output from the beginning, and models whose label sets differ still have the same tensors.

    For another number of classes the shares are the same, with at least one new class at every stage (of 10:
    7, 8, 9, 10). For another length the number of classes rises evenly between the first and the last of
    these. The data of all stages with the same classes belong to one owner; of a class that several owners
    have, each has its own samples. What the paper says of its stages' samples we do not know.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget; the paper's, whatever the number of labels: 0.
        length: How many stages, at least 2; the paper's: 4.

    Raises:
        ScenarioError: If these labels cannot be forgotten, or the length is too small.
    """
    return _chain("incremental", num_classes, forget, len(SHARES) if length is None else length)


def incremental_30(
    num_classes: int, forget: Iterable[int] | None = None, length: int | None = None
) -> Scenario:
    """The paper's long chain: as `incremental`, 30 stages unless told otherwise.

    How many classes each of the paper's 30 stages has we do not know: ours rise evenly from 90 to 98 of 100.
    """
    return _chain("incremental-30", num_classes, forget, 30 if length is None else length)


def stage_sizes(num_classes: int, length: int) -> list[int]:
    """How many classes each stage has, never falling; see `incremental`."""
    sizes: list[int] = []
    for share in reversed(SHARES):
        size = round(share * num_classes)
        sizes.insert(0, min(size, sizes[0] - 1) if sizes else size)
    if length == len(SHARES):
        return sizes
    first, last = sizes[0], sizes[-1]
    return [first + round((last - first) * i / (length - 1)) for i in range(length)]


def _chain(name: str, num_classes: int, forget: Iterable[int] | None, length: int) -> Scenario:
    gone = to_forget(num_classes, forget, 1)
    if length < 2:
        raise ScenarioError(f"{name} needs at least 2 stages, got {length}")
    sizes = stage_sizes(num_classes, length)
    if sizes[0] < 1:
        raise ScenarioError(f"{name} adds a class at every stage: {num_classes} classes are too few")
    owner = {size: f"client{i}" for i, size in enumerate(sorted(set(sizes)), start=1)}
    models = [
        PlannedModel(f"u{i}", {f"u{i - 1}": 1} if i else {}, owner[size]) for i, size in enumerate(sizes)
    ]
    return Scenario(
        name,
        "Incremental learning: every stage goes on from the last one, with more classes.",
        tuple(models),
        {client: tuple(range(size)) for size, client in owner.items()},
        gone,
    )
