"""What a scenario is: which models inherit from which, on whose data, and who owns which labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_unlearn.plan import PlannedModel, ordered


class ScenarioError(ValueError):
    """A scenario that cannot be built."""


@dataclass(frozen=True)
class Scenario:
    """One topology with its data.

    Attributes:
        name: What users call it.
        about: One sentence: where such a graph comes from.
        models: Every model, parents before children.
        labels: Owner to the labels that it owns samples of, ascending.
        forget: The labels to forget.
    """

    name: str
    about: str
    models: tuple[PlannedModel, ...]
    labels: Mapping[str, tuple[int, ...]] = field(hash=False)
    forget: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(ordered(self.models)))
        for model in self.models:
            if model.owner is not None and model.owner not in self.labels:
                raise ScenarioError(
                    f"{self.name}: {model.name!r} trains on the data of {model.owner!r}, who has none"
                )
        owned = {label for own in self.labels.values() for label in own}
        if unowned := sorted(set(self.forget) - owned):
            raise ScenarioError(f"{self.name}: nobody owns class {unowned[0]}, which is to be forgotten")

    @property
    def owners(self) -> tuple[str, ...]:
        """Everybody who owns data, in the order of `labels`."""
        return tuple(self.labels)

    def known(self) -> dict[str, frozenset[int]]:
        """Model to the labels that it, or a model it inherits from, was trained on."""
        found: dict[str, frozenset[int]] = {}
        for model in self.models:
            own = frozenset(self.labels[model.owner] if model.owner is not None else ())
            found[model.name] = own.union(*(found[p] for p in model.parents))
        return found

    def affected(self) -> list[str]:
        """The models that learned something that is to be forgotten, parents before children."""
        known = self.known()
        return [m.name for m in self.models if known[m.name] & set(self.forget)]

    def roots(self) -> list[str]:
        """The first models that learned something that is to be forgotten."""
        affected = set(self.affected())
        return [m.name for m in self.models if m.name in affected and not affected.intersection(m.parents)]

    def holders(self) -> dict[str, tuple[int, ...]]:
        """Owner to the labels that are to be forgotten and that it owns; only owners that have some."""
        own = {
            owner: tuple(la for la in labels if la in self.forget) for owner, labels in self.labels.items()
        }
        return {owner: labels for owner, labels in own.items() if labels}
