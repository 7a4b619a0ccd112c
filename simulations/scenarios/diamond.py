"""A small federation in which models join and part again."""

from __future__ import annotations

from collections.abc import Iterable

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario
from simulations.scenarios.labels import to_forget, without


def diamond(num_classes: int, forget: Iterable[int] | None = None) -> Scenario:
    """The paper's federated diamond.

    d and s are clean. r1 starts from their mean and is trained by a holder, who goes on to r2. r3 starts from
    the mean of d and r2, r4 from that of r1 and r2; a second holder trains both. Class 0 is forgotten: r1 is
    the root, r2 to r4 inherit from it.

    Where ours differs: d and s start from one common model, ``init``, that nobody has trained, since the mean
    of models that began with different random weights is noise.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget; the paper's, whatever the number of labels: 0.

    Raises:
        ScenarioError: If these labels cannot be forgotten.
    """
    gone = to_forget(num_classes, forget, 1)
    everything, clean = tuple(range(num_classes)), without(num_classes, gone)
    return Scenario(
        "diamond",
        "Federated learning: clients build on means of one another's models.",
        (
            PlannedModel("init"),
            PlannedModel("d", {"init": 1}, "client1"),
            PlannedModel("s", {"init": 1}, "client2"),
            PlannedModel("r1", {"d": 1, "s": 1}, "client3"),
            PlannedModel("r2", {"r1": 1}, "client3"),
            PlannedModel("r3", {"d": 1, "r2": 1}, "client4"),
            PlannedModel("r4", {"r1": 1, "r2": 1}, "client4"),
        ),
        {"client1": clean, "client2": clean, "client3": everything, "client4": everything},
        gone,
    )
