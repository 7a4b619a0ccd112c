"""Which labels a scenario forgets and which it keeps: the paper's, scaled, or those that are asked for."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise

from simulations.scenarios.contract import ScenarioError


def to_forget(
    num_classes: int, forget: Iterable[int] | None, default: int, *, least: int = 1
) -> tuple[int, ...]:
    """The labels to forget, ascending.

    Args:
        num_classes: How many labels there are.
        forget: Those that are asked for; None: the first ``default``.
        default: How many to forget if nothing is asked for.
        least: How many the scenario needs, so that each of its holders has some.

    Raises:
        ScenarioError: If they are no labels, too few, or named twice.
    """
    if num_classes < 2:
        raise ScenarioError(f"there must be at least 2 classes, got {num_classes}")
    asked = range(default) if forget is None else forget
    if isinstance(asked, str):
        raise ScenarioError(f"the classes to forget are a list of whole numbers, got the text {asked!r}")
    try:
        chosen = [operator.index(label) for label in asked]
    except TypeError as e:
        raise ScenarioError(f"the classes to forget are a list of whole numbers, got {forget!r}") from e
    if beyond := [label for label in chosen if not 0 <= label < num_classes]:
        raise ScenarioError(
            f"class {beyond[0]} is to be forgotten, but the {num_classes} classes are 0 to {num_classes - 1}"
        )
    if len(set(chosen)) != len(chosen):
        raise ScenarioError(f"a class to forget is named twice, got {chosen}")
    if len(chosen) < least:
        raise ScenarioError(f"at least {least} classes to forget are needed here, got {chosen}")
    return tuple(sorted(chosen))


def without(num_classes: int, labels: Iterable[int]) -> tuple[int, ...]:
    """All labels but these, ascending."""
    left_out = set(labels)
    return tuple(label for label in range(num_classes) if label not in left_out)


def ranges(labels: Iterable[int]) -> str:
    """Labels in words, such as ``"0, 5-9"``."""
    runs: list[list[int]] = []
    for label in sorted(labels):
        if runs and runs[-1][-1] == label - 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def cut(labels: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Labels in this many parts of about the same size, in order; the last ones are the larger ones."""
    ends = [len(labels) * i // parts for i in range(parts + 1)]
    return [tuple(labels[a:b]) for a, b in pairwise(ends)]
