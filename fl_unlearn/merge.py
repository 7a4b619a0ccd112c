"""MFIM: merging the holders' forget Fishers into one.

The paper (arXiv 2408.08493) takes the element-wise maximum over the initial unlearning models, so that a
parameter which matters to any one of them is seen as mattering to all. Here the parts that are merged are
finer: one per holder *and* forgotten class, because a mean over several classes hides the parameters that
matter to only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

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


Rule = Callable[[Sequence[FisherPart]], dict[str, torch.Tensor]]
RULES: dict[str, Rule] = {}
"""The known merge rules by name; `register` adds one."""


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator that makes a rule selectable by ``name``.

    Raises:
        SettingsError: If the name is taken.
    """

    def add(rule: Rule) -> Rule:
        if name in RULES:
            raise SettingsError(f"a merge rule named {name!r} is registered already; choose another name")
        RULES[name] = rule
        return rule

    return add


def merge(parts: Sequence[FisherPart], rule: str = "max") -> dict[str, torch.Tensor]:
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
    if rule not in RULES:
        raise SettingsError(f"unknown merge rule {rule!r}; known: {', '.join(sorted(RULES))}")
    used = [p for p in parts if p.count > 0]
    if not used:
        raise FisherError("there is no forget Fisher to merge: no holder has a sample of the forgotten data")
    shapes = {n: t.shape for n, t in used[0].mean.items()}
    for part in used[1:]:
        if {n: t.shape for n, t in part.mean.items()} != shapes:
            raise FisherError(
                f"the Fisher of holder {part.holder!r} (class {part.label}) has other names or shapes than "
                f"that of {used[0].holder!r}; all clients must use the same model and scope"
            )
    return RULES[rule](used)


@register("max")
def maximum(parts: Sequence[FisherPart]) -> dict[str, torch.Tensor]:
    """Element-wise maximum over holders and classes (arXiv 2408.08493, taken class by class)."""
    return _reduce(parts, lambda stack: stack.amax(dim=0))


@register("mean")
def mean(parts: Sequence[FisherPart]) -> dict[str, torch.Tensor]:
    """Mean over all forgotten samples: the parts weighted by their sample counts."""
    total = sum(p.count for p in parts)
    return _reduce(parts, lambda stack: stack.sum(dim=0), [p.count / total for p in parts])


@register("sum")
def total(parts: Sequence[FisherPart]) -> dict[str, torch.Tensor]:
    """Sum of the parts' means."""
    return _reduce(parts, lambda stack: stack.sum(dim=0))


@register("max-divided")
def maximum_divided(parts: Sequence[FisherPart]) -> dict[str, torch.Tensor]:
    """The reference code's rule: maximum over the roots, divided by 5 once per further root.

    A root's Fisher is there one mean over all its forgotten samples, so the parts of one holder are
    pooled first. `REFERENCE_DIVISOR` holds the hand-set constant.
    """
    holders: dict[str, list[FisherPart]] = {}
    for part in parts:
        holders.setdefault(part.holder, []).append(part)
    pooled = [FisherPart(h, -1, mean(own), sum(p.count for p in own)) for h, own in holders.items()]
    divisor = REFERENCE_DIVISOR ** (len(pooled) - 1)
    return {n: t / divisor for n, t in maximum(pooled).items()}


def _reduce(
    parts: Sequence[FisherPart],
    reduce: Callable[[torch.Tensor], torch.Tensor],
    weights: Sequence[float] | None = None,
) -> dict[str, torch.Tensor]:
    factors = weights or [1.0] * len(parts)
    return {
        n: reduce(torch.stack([p.mean[n].double() * w for p, w in zip(parts, factors, strict=True)]))
        for n in parts[0].mean
    }
