"""Several classes at once, learned from two clients."""

from __future__ import annotations

from collections.abc import Iterable

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario
from simulations.scenarios.labels import cut, to_forget, without


def several(num_classes: int, forget: Iterable[int] | None = None) -> Scenario:
    """The paper's federation with two roots.

    r1 is trained by the client that holds the upper half of the classes to forget (5 to 9 of 0 to 9), r2 by
    the one that holds the lower half; r4 starts from their mean and is trained by a third client. The roots
    are r1 and r2, so that Fishers of several holders are merged (MFIM).

    Where ours differs: r1 and r2 start from one common model, ``init``, that nobody has trained, since the
    mean of models that began with different random weights is noise. What the paper's third client holds we
    do not know. Ours has all classes, those to forget too: without them, training would make r4 lose them by
    itself.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget, at least 2; by default the first tenth as in the paper (0 to 9 of 100), but
            at least 4 (0 to 3 of 10).

    Raises:
        ScenarioError: If these labels cannot be forgotten.
    """
    gone = to_forget(num_classes, forget, 2 * max(2, num_classes // 20), least=2)
    lower, upper = cut(gone, 2)
    return Scenario(
        "several",
        "Federated learning: two clients bring in different classes that are to be forgotten.",
        (
            PlannedModel("init"),
            PlannedModel("r1", {"init": 1}, "client1"),
            PlannedModel("r2", {"init": 1}, "client2"),
            PlannedModel("r4", {"r1": 1, "r2": 1}, "client3"),
        ),
        {
            "client1": without(num_classes, lower),
            "client2": without(num_classes, upper),
            "client3": tuple(range(num_classes)),
        },
        gone,
    )
