"""One model that others fine-tune."""

from __future__ import annotations

from collections.abc import Iterable

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario
from simulations.scenarios.labels import to_forget


def transfer(num_classes: int, forget: Iterable[int] | None = None) -> Scenario:
    """The paper's star of transfer learning.

    u0 is trained whole; u1 to u4 start from it, and only their head is trained. u0 is the root.

    Whose data the paper trains the copies on we do not know. Here every owner has all classes, those to
    forget too: a head that is trained without a class loses it by itself.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget; by default as in the paper the first twentieth (0 to 4 of 100), but at least
            2 (0 and 1 of 10).

    Raises:
        ScenarioError: If these labels cannot be forgotten.
    """
    gone = to_forget(num_classes, forget, max(2, num_classes // 20))
    copies = [PlannedModel(f"u{i}", {"u0": 1}, f"client{i}", trains="head") for i in range(1, 5)]
    return Scenario(
        "transfer",
        "Transfer learning: four copies of one model, of which only the head is trained further.",
        (PlannedModel("u0", owner="client0"), *copies),
        {f"client{i}": tuple(range(num_classes)) for i in range(5)},
        gone,
    )
