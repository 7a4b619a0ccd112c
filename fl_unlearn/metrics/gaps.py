"""How far a model is from retraining, computed by the server from measured numbers.

The gaps are |accuracy − the retrained model's| on forgotten, retained and held-out samples; the tug-of-war
puts them into one number, ToW = (1 − gap forgotten) · (1 − gap retained) · (1 − gap held-out), after
Zhao et al. 2024, "What makes unlearning hard and what to do about it" (arXiv 2406.01257). Held-out
samples of forgotten classes are in none of them: the forgotten training samples speak for these classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fl_unlearn.metrics.contract import Column, Measured

_PARTS = {
    "gap-forget": ("forget-accuracy", "forgotten"),
    "gap-retain": ("retain-accuracy", "retained"),
    "gap-held": ("held-retain-accuracy", "held-out"),
}

TUG_OF_WAR = "tug-of-war"

COLUMNS = (
    *(
        Column(
            key,
            f"{title}: gap",
            "%",
            "low",
            f"Distance of the accuracy on {title} samples from retraining's.",
            1.0,
        )
        for key, (_, title) in _PARTS.items()
    ),
    Column(
        TUG_OF_WAR,
        "tug-of-war",
        "",
        "high",
        "Product of 1 less each gap to retraining; 1: no gap at all.",
        1.0,
    ),
)
"""What `gaps` gives."""


def gap(value: Measured | None, retrained: Measured | None) -> Measured:
    """The distance of a value from the retrained model's; absent, with the reason, where one of them is.

    Args:
        value: A model's value; None: it was not measured.
        retrained: The retrained model's.
    """
    a, b = (m or Measured(None, 0, "not measured") for m in (value, retrained))
    if a.value is None:
        return Measured(None, 0, a.why)
    if b.value is None:
        return Measured(None, 0, f"no retrained value to compare with: {b.why}")
    return Measured(abs(a.value - b.value), min(a.samples, b.samples))


def tug_of_war(found: Mapping[str, Measured]) -> Measured:
    """Π (1 − gap) over all gaps given; absent, with the reason, where one of them is.

    Args:
        found: Name to gap, each a difference of shares, 0 to 1.
    """
    for name, m in found.items():
        if m.value is None:
            return Measured(None, 0, f"{name}: {m.why}")
    product = math.prod(1.0 - m.value for m in found.values() if m.value is not None)
    return Measured(product, min(m.samples for m in found.values()))


def gaps(model: Mapping[str, Measured], retrained: Mapping[str, Measured]) -> dict[str, Measured]:
    """The gaps of one model to the retrained one, and their tug-of-war, by the keys of `COLUMNS`.

    Args:
        model: The model's values by column key, of which the accuracies are used.
        retrained: The same of the model retrained with the same seed.
    """
    found = {key: gap(model.get(of), retrained.get(of)) for key, (of, _) in _PARTS.items()}
    return {**found, TUG_OF_WAR: tug_of_war(found)}
