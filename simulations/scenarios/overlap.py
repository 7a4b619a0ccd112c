"""How many labels owners have in common: the paper's non-IID setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulations.scenarios.contract import Scenario, ScenarioError


def overlap(labels: Sequence[int], owners: Sequence[str], share: float) -> dict[str, tuple[int, ...]]:
    """Give every owner labels of its own, and some that all have in common.

    With n labels and k owners, c = s n / (k - s (k - 1)) labels, rounded, are everybody's, and the others are
    dealt in turn: about s of an owner's labels are then common ones.

    Args:
        labels: The labels, in the order in which they become common, then dealt.
        owners: The owners.
        share: s: which share of an owner's labels it has in common with the others: 0 none, 1 all.

    Returns:
        Owner to its labels, ascending.

    Raises:
        ScenarioError: If the share is not between 0 and 1, or there is no owner.
    """
    if not 0 <= share <= 1:
        raise ScenarioError(
            f"the label overlap must be between 0 (disjoint) and 1 (all the same), got {share}"
        )
    if not owners:
        raise ScenarioError("labels cannot be given to nobody: name at least one owner")
    count = len(owners)
    common = round(share * len(labels) / (count - share * (count - 1)))
    rest = labels[common:]
    return {owner: tuple(sorted([*labels[:common], *rest[i::count]])) for i, owner in enumerate(owners)}


def with_overlap(scenario: Scenario, share: float) -> Scenario:
    """A scenario in which owners have only a share of the retained labels in common; see `overlap`.

    The labels to forget stay with those who have them: they make the scenario.

    Raises:
        ScenarioError: If the scenario itself says which retained labels each owner has.
    """
    forget = set(scenario.forget)
    kept = [tuple(label for label in own if label not in forget) for own in scenario.labels.values()]
    if len(set(kept)) != 1:
        raise ScenarioError(
            f"the label overlap cannot be chosen for {scenario.name!r}: which labels each owner has is what "
            "makes this scenario; leave overlap out"
        )
    dealt = overlap(kept[0], scenario.owners, share)
    labels = {
        owner: tuple(sorted([*dealt[owner], *forget.intersection(own)]))
        for owner, own in scenario.labels.items()
    }
    return replace(scenario, labels=labels)
