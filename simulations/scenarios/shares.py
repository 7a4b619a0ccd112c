"""Who gets which samples: the data set dealt to a scenario's owners, label by label."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.labels import ranges

log = logging.getLogger("fl_unlearn.scenarios")

Parts = Iterable[tuple[str, np.ndarray]]
"""Owners, each with positions of samples that become its own."""


@dataclass(frozen=True)
class _Deal:
    """What is dealt: the positions of each label's samples, shuffled, and the owners that may have them."""

    members: Mapping[int, np.ndarray]
    owners: Mapping[int, tuple[str, ...]]
    alpha: float
    classes_per_owner: int
    seed: int


def share(
    scenario: Scenario,
    labels: np.ndarray,
    *,
    partition: str = "even",
    alpha: float = 0.5,
    classes_per_owner: int = 2,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Deal samples to the owners of a scenario; no sample goes to two of them.

    Nobody gets a sample of a label that the scenario does not give it; samples of labels that nobody has are
    left out. The labels to forget are always split evenly among the owners that have them, since they make
    the scenario. Of the others:

    - ``"even"`` splits each label evenly among the owners that have it;
    - ``"dirichlet"`` draws the shares of each label from a Dirichlet distribution over the owners that have
      it (flwr-datasets' `DirichletPartitioner`; Yurochkin et al. 2019, arXiv 1905.12022);
    - ``"pathological"`` leaves each owner ``classes_per_owner`` of them (flwr-datasets'
      `PathologicalPartitioner`, first class in turn, the others at random; Li et al. 2021, arXiv 2102.02079);
      labels that fall to nobody are left out. All owners must have the same retained labels.

    Args:
        scenario: The scenario.
        labels: The data set's labels: whole numbers, shape (N,).
        partition: One of `PARTITIONS`.
        alpha: Of "dirichlet": small values give an owner few labels (0.1), large ones all alike (100).
        classes_per_owner: Of "pathological".
        seed: Same seed, same shares.

    Returns:
        Owner to the ascending positions of its samples, int64; none is empty.

    Raises:
        ScenarioError: If the arguments make no sense, a label of the scenario does not occur, or there are
            too few samples to give everybody some.
    """
    if partition not in PARTITIONS:
        close = difflib.get_close_matches(str(partition), PARTITIONS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ScenarioError(
            f"unknown partition {partition!r}: the known ones are {', '.join(PARTITIONS)}{hint}"
        )
    if not 0 < alpha < np.inf:
        raise ScenarioError(f"alpha must be a finite number above 0, got {alpha}")
    if classes_per_owner < 1:
        raise ScenarioError(f"classes_per_owner must be at least 1, got {classes_per_owner}")
    deal = _prepared(scenario, labels, alpha, classes_per_owner, seed)
    forget = [label for label in deal.members if label in scenario.forget]
    for label in forget:
        if len(deal.members[label]) < len(deal.owners[label]):
            raise ScenarioError(
                f"class {label} is to be forgotten and has {len(deal.members[label])} samples, "
                f"too few for its {len(deal.owners[label])} holders; take more samples"
            )
    parts = [*_even(deal, forget)]
    parts += PARTITIONS[partition](deal, [label for label in deal.members if label not in scenario.forget])
    return _collected(scenario.owners, parts)


def held_out(
    shares: Mapping[str, np.ndarray], labels: np.ndarray, test_labels: np.ndarray, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Deal the test samples as the training samples are: an owner's share of a label is the same in both.

    Args:
        shares: Owner to its training samples, as `share` gives them.
        labels: Labels of the training part, shape (N,).
        test_labels: Labels of the test part, shape (M,).
        seed: Same seed, same shares.

    Returns:
        Owner to the ascending positions of its test samples, int64; none is empty.

    Raises:
        ScenarioError: If there are too few test samples to give everybody some.
    """
    train, test = _whole_numbers(labels), _whole_numbers(test_labels)
    rng = np.random.default_rng(seed)
    parts: list[tuple[str, np.ndarray]] = []
    for label in np.unique(test):
        counts = {owner: int((train[own] == label).sum()) for owner, own in shares.items()}
        members = rng.permutation(np.flatnonzero(test == label))
        parts += _split(members, {owner: n for owner, n in counts.items() if n}, turn=int(label))
    return _collected(tuple(shares), parts)


def _prepared(
    scenario: Scenario, labels: np.ndarray, alpha: float, classes_per_owner: int, seed: int
) -> _Deal:
    given = _whole_numbers(labels)
    owners: dict[int, list[str]] = defaultdict(list)
    for owner, own in scenario.labels.items():
        for label in own:
            owners[label].append(owner)
    there = set(np.unique(given).tolist())
    if missing := sorted(owners.keys() - there):
        raise ScenarioError(
            f"the scenario {scenario.name!r} has the classes {ranges(owners)}, but there is no sample of "
            f"class {missing[0]} (the data has {ranges(there)}); take more samples, or fewer classes"
        )
    rng = np.random.default_rng(seed)
    members = {label: rng.permutation(np.flatnonzero(given == label)) for label in sorted(owners)}
    having = {label: tuple(names) for label, names in owners.items()}
    return _Deal(members, having, alpha, classes_per_owner, seed)


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < 0:
        raise ScenarioError(
            "labels are whole numbers from 0 up, shape (N,) with N > 0; "
            f"got shape {array.shape} of {array.dtype}" + (f", least {array.min()}" if array.size else "")
        )
    return array


def _split(members: np.ndarray, weights: Mapping[str, int], turn: int) -> Parts:
    """Split samples in proportion to weights; which owner rounding favours changes with ``turn``."""
    if not weights:
        return []
    names = list(weights)
    names = [names[(i + turn) % len(names)] for i in range(len(names))]
    total = np.cumsum([weights[name] for name in names])
    ends = (total * len(members) + total[-1] // 2) // total[-1]
    return zip(names, np.split(members, ends[:-1]), strict=True)


# --------------------------------------------------------------------------- partitions
def _even(deal: _Deal, classes: Sequence[int]) -> Parts:
    for label in classes:
        yield from _split(deal.members[label], dict.fromkeys(deal.owners[label], 1), turn=label)


def _dirichlet(deal: _Deal, classes: Sequence[int]) -> Parts:
    from simulations.quickstart.fl_unlearn_quickstart.partition import assign

    together: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for label in classes:
        together[deal.owners[label]].append(label)
    for i, (owners, group) in enumerate(together.items()):
        where, values = _concatenated(deal, group)
        try:
            dealt = assign(values, len(owners), alpha=deal.alpha, seed=deal.seed + i)
        except ValueError as e:
            raise ScenarioError(f"classes {ranges(group)}, of {', '.join(owners)}: {e}") from e
        yield from zip(owners, (where[rows] for rows in dealt), strict=True)


def _pathological(deal: _Deal, classes: Sequence[int]) -> Parts:
    from datasets import Dataset
    from flwr_datasets.partitioner import PathologicalPartitioner

    owners = deal.owners[classes[0]] if classes else ()
    everybody = {owner for names in deal.owners.values() for owner in names}
    if {deal.owners[label] for label in classes} != {owners} or set(owners) != everybody:
        raise ScenarioError(
            "the pathological partition chooses each owner's retained classes, but this scenario gives "
            "owners different ones itself; use another partition, or leave the label overlap out"
        )
    where, values = _concatenated(deal, classes)
    partitioner = PathologicalPartitioner(
        len(owners), "label", deal.classes_per_owner, "first-deterministic", seed=deal.seed
    )
    partitioner.dataset = Dataset.from_dict({"index": where, "label": values})
    try:
        with warnings.catch_warnings():  # it warns of labels that fall to nobody; they are told below
            warnings.simplefilter("ignore", UserWarning)
            dealt = [np.asarray(partitioner.load_partition(i)["index"][:]) for i in range(len(owners))]
    except ValueError as e:
        raise ScenarioError(
            f"{len(where)} samples of {len(classes)} retained classes could not be shared among "
            f"{len(owners)} owners with {deal.classes_per_owner} classes each: {e}"
        ) from e
    left = set(where.tolist()).difference(*(part.tolist() for part in dealt))
    if unused := [label for label in classes if left.intersection(deal.members[label].tolist())]:
        log.info("the pathological partition gives classes %s to nobody", ranges(unused))
    return list(zip(owners, dealt, strict=True))


def _concatenated(deal: _Deal, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and labels of all samples of some classes."""
    members = [deal.members[label] for label in classes]
    return np.concatenate(members), np.repeat(classes, [len(m) for m in members])


PARTITIONS: dict[str, Callable[[_Deal, Sequence[int]], Parts]] = {
    "even": _even,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
}
"""The ways to deal retained labels, by name."""


def _collected(owners: Sequence[str], parts: Parts) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {owner: [] for owner in owners}
    for owner, part in parts:
        found[owner].append(part)
    shares = {o: np.sort(np.concatenate([np.empty(0, np.int64), *own])) for o, own in found.items()}
    if empty := [owner for owner, own in shares.items() if not len(own)]:
        raise ScenarioError(f"no sample is left for {', '.join(empty)}; take more samples, or fewer owners")
    return shares
