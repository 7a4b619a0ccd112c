"""Workers that train copies of one model at the same time, each on other data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.labels import cut, to_forget, without

WORKERS = ("worker1", "worker2", "worker3")


def parallel(num_classes: int, forget: Iterable[int] | None = None) -> Scenario:
    """The paper's distributed data parallel training, with three roots.

    u1, u2 and u3 are trained by workers of which each holds another third of the classes to forget (0 to 4,
    5 to 9, 10 to 14); u0 is their mean. All three are roots (MFIM).

    Where ours differs: the workers start from one common model, ``init``, that nobody has trained, since the
    mean of models that began with different random weights is noise.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget, at least 3; by default as in the paper 15 of 100 (0 to 14), in proportion
            for more or fewer, but at least 3 (0 to 2 of 10).

    Raises:
        ScenarioError: If these labels cannot be forgotten.
    """
    gone = to_forget(num_classes, forget, 3 * max(1, num_classes // 20), least=3)
    kept = without(num_classes, gone)
    labels = {w: tuple(sorted(part + kept)) for w, part in zip(WORKERS, cut(gone, 3), strict=True)}
    about = "Distributed data parallel training: each worker holds other classes that are to be forgotten."
    return _workers("parallel", about, labels, gone)


def parallel_missing(num_classes: int, forget: Iterable[int] | None = None) -> Scenario:
    """The paper's other layout of distributed data parallel training: no worker has every class.

    As `parallel`, but u1 to u3 lack the last fifth, the last tenth and the second tenth of the classes (of
    100: 80 to 99, 90 to 99, 10 to 19), and class 0, which all three have, is forgotten.

    Args:
        num_classes: How many labels there are, at least 10.
        forget: Labels to forget; the paper's, whatever the number of labels: 0.

    Raises:
        ScenarioError: If these labels cannot be forgotten, or there are too few.
    """
    gone = to_forget(num_classes, forget, 1)
    if num_classes < 10:
        raise ScenarioError(
            f"parallel-missing takes tenths of the classes away: at least 10 are needed, got {num_classes}"
        )
    tenth = [num_classes * i // 10 for i in range(11)]
    lacking = ((tenth[8], tenth[10]), (tenth[9], tenth[10]), (tenth[1], tenth[2]))
    labels = {w: without(num_classes, range(a, b)) for w, (a, b) in zip(WORKERS, lacking, strict=True)}
    about = "Distributed data parallel training: every worker lacks other classes."
    return _workers("parallel-missing", about, labels, gone)


def _workers(name: str, about: str, labels: Mapping[str, tuple[int, ...]], gone: tuple[int, ...]) -> Scenario:
    trained = [PlannedModel(f"u{i}", {"init": 1}, worker) for i, worker in enumerate(WORKERS, start=1)]
    mean = PlannedModel("u0", {model.name: 1 for model in trained})
    return Scenario(name, about, (PlannedModel("init"), *trained, mean), labels, gone)
