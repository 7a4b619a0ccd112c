"""MFIM: merging the holders' forget Fishers into one.

The paper (arXiv 2408.08493) takes the element-wise maximum over the initial unlearning models, so that a
parameter which matters to any one of them is seen as mattering to all. Here the parts that are merged are
finer: one per holder *and* forgotten class, because a mean over several classes hides the parameters that
matter to only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fl_unlearn.running import RunningSum
from fl_unlearn.types import FisherError, SettingsError

REFERENCE_DIVISOR = 5.0
"""What the reference code divides by once per further root (50 for AlexNet and 1 for ResNet there)."""


@dataclass(frozen=True)
class FisherPart:
    """The mean Fisher diagonal of one forgotten class at one holder.

    Attributes:
        holder: Name of the client.
        label: The forgotten class.
        mean: Parameter name to mean squared gradient, in the parameter's shape.
        count: Number of samples the mean was taken over (mini-batches for the kind ``batch``), > 0.
    """

    holder: str
    label: int
    mean: Mapping[str, torch.Tensor]
    count: int


class Rule(Protocol):
    """Merges parts that come one by one; all of them have the same names and shapes, and samples."""

    def add(self, part: FisherPart) -> None:
        """Take one part in."""

    def result(self) -> dict[str, torch.Tensor]:
        """Parameter name to merged Fisher, float64, of all parts so far, in whatever order they came."""


RULES: dict[str, Callable[[], Rule]] = {}
"""The known merge rules by name; `register` adds one."""


def register(name: str) -> Callable[[Callable[[], Rule]], Callable[[], Rule]]:
    """Decorator that makes a rule selectable by ``name``.

    Raises:
        SettingsError: If the name is taken.
    """

    def add(rule: Callable[[], Rule]) -> Callable[[], Rule]:
        if name in RULES:
            raise SettingsError(f"a merge rule named {name!r} is registered already; choose another name")
        RULES[name] = rule
        return rule

    return add


class Merging:
    """A merge to which parts are added as they arrive.

    Args:
        rule: A name in `RULES`.

    Raises:
        SettingsError: If the rule is unknown.
    """

    def __init__(self, rule: str = "max") -> None:
        if rule not in RULES:
            raise SettingsError(f"unknown merge rule {rule!r}; known: {', '.join(sorted(RULES))}")
        self._rule = RULES[rule]()
        self._first: FisherPart | None = None
        self._shapes: dict[str, torch.Size] = {}

    def add(self, part: FisherPart) -> None:
        """Add one part; one without samples is ignored.

        Raises:
            FisherError: If it differs from the others in names or shapes.
        """
        if part.count <= 0:
            return
        shapes = {n: t.shape for n, t in part.mean.items()}
        if self._first is None:
            self._first, self._shapes = FisherPart(part.holder, part.label, {}, part.count), shapes
        elif shapes != self._shapes:
            raise FisherError(
                f"the Fisher of holder {part.holder!r} (class {part.label}) has other names or shapes than "
                f"that of {self._first.holder!r}; all clients must use the same model and scope"
            )
        self._rule.add(part)

    def result(self) -> dict[str, torch.Tensor]:
        """Parameter name to merged Fisher, float64, in the parameter's shape.

        Raises:
            FisherError: If no part had a sample.
        """
        if self._first is None:
            raise FisherError(
                "there is no forget Fisher to merge: no holder has a sample of the forgotten data"
            )
        return self._rule.result()


def merge(parts: Iterable[FisherPart], rule: str = "max") -> dict[str, torch.Tensor]:
    """Merge the forget Fishers of all holders and classes into one diagonal.

    Args:
        parts: One part per (holder, forgotten class); parts without samples are ignored.
        rule: A name in `RULES`.

    Returns:
        Parameter name to merged Fisher, float64, in the parameter's shape.

    Raises:
        SettingsError: If the rule is unknown.
        FisherError: If no part has a sample, or the parts differ in names or shapes.
    """
    merging = Merging(rule)
    for part in parts:
        merging.add(part)
    return merging.result()


@register("max")
class Maximum:
    """Element-wise maximum over holders and classes (arXiv 2408.08493, taken class by class)."""

    def __init__(self) -> None:
        self._largest: dict[str, torch.Tensor] = {}

    def add(self, part: FisherPart) -> None:
        """Take one part in."""
        self._largest = {
            n: torch.maximum(self._largest[n], t.double()) if self._largest else t.double()
            for n, t in part.mean.items()
        }

    def result(self) -> dict[str, torch.Tensor]:
        """The maximum so far."""
        return dict(self._largest)


@register("mean")
class Mean:
    """Mean over all forgotten samples: the parts weighted by their sample counts."""

    def __init__(self) -> None:
        self._sum, self._count = RunningSum(), 0

    def add(self, part: FisherPart) -> None:
        """Take one part in."""
        self._sum.add({n: t.double() * part.count for n, t in part.mean.items()})
        self._count += part.count

    def result(self) -> dict[str, torch.Tensor]:
        """The mean so far."""
        return {n: t / self._count for n, t in self._sum.total().items()}


@register("sum")
class Total:
    """Sum of the parts' means."""

    def __init__(self) -> None:
        self._sum = RunningSum()

    def add(self, part: FisherPart) -> None:
        """Take one part in."""
        self._sum.add(part.mean)

    def result(self) -> dict[str, torch.Tensor]:
        """The sum so far."""
        return self._sum.total()


@register("max-divided")
class MaximumDivided:
    """The reference code's rule: maximum over the roots, divided by 5 once per further root.

    A root's Fisher is there one mean over all its forgotten samples, so the parts of one holder are
    pooled first, and one Fisher per holder is held. `REFERENCE_DIVISOR` holds the hand-set constant.
    """

    def __init__(self) -> None:
        self._holders: dict[str, Mean] = {}

    def add(self, part: FisherPart) -> None:
        """Take one part in."""
        self._holders.setdefault(part.holder, Mean()).add(part)

    def result(self) -> dict[str, torch.Tensor]:
        """The divided maximum so far."""
        largest = Maximum()
        for holder, pooled in self._holders.items():
            largest.add(FisherPart(holder, -1, pooled.result(), 1))
        divisor = REFERENCE_DIVISOR ** (len(self._holders) - 1)
        return {n: t / divisor for n, t in largest.result().items()}
