"""A long line of models: does forgetting reach the last of them?"""

from __future__ import annotations

from collections.abc import Iterable

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.labels import to_forget

OWNERS = 4


def depth(num_classes: int, forget: Iterable[int] | None = None, length: int | None = None) -> Scenario:
    """The paper's depth of inheritance: 50 models, each from the mean of the last two.

    u0 begins with new weights, u1 starts from u0. The root is u0, and every other model inherits from it.

    Whose data the paper trains on we do not know. Here four clients take turns, and all of them have all
    classes, those to forget too: with a class that only the first model has seen, the later ones would lose
    it by themselves, and there would be nothing to measure.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget; by default, whatever the number of labels: 0.
        length: How many models, at least 3; the paper's: 50.

    Raises:
        ScenarioError: If these labels cannot be forgotten, or the length is too small.
    """
    gone = to_forget(num_classes, forget, 1)
    count = 50 if length is None else length
    if count < 3:
        raise ScenarioError(f"depth needs at least 3 models, got {count}")
    models = [
        PlannedModel(f"u{i}", {f"u{j}": 1 for j in range(max(0, i - 2), i)}, f"client{i % OWNERS + 1}")
        for i in range(count)
    ]
    return Scenario(
        "depth",
        "Depth of inheritance: every model starts from the mean of the last two.",
        tuple(models),
        {f"client{i + 1}": tuple(range(num_classes)) for i in range(min(OWNERS, count))},
        gone,
    )
