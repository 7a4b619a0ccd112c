"""Random graphs of any size, for tests and for scaling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

from fl_unlearn.plan import PlannedModel
from simulations.scenarios.contract import Scenario, ScenarioError
from simulations.scenarios.labels import to_forget


def random_dag(
    nodes: int,
    *,
    in_degree: float = 2.0,
    roots: float = 0.1,
    owners: int = 5,
    affected: int | None = None,
    num_classes: int = 10,
    forget: Sequence[int] = (0,),
    seed: int = 0,
) -> Scenario:
    """Models that start from the mean of random older ones, each trained on the data of a random owner.

    Models without parents are new weights, trained on nobody's data. Of the owners, half (rounded down) hold
    what is to be forgotten, and all own every other label. Which models are affected is drawn first, so that
    their number is exact: the others inherit from one another alone, and train with owners who hold nothing
    of it. An affected model inherits from an affected one, or its owner holds what is to be forgotten.

    Args:
        nodes: How many models, at least 2.
        in_degree: Mean number of parents of those that have any, at least 1; their sum is rounded.
        roots: Share of models without parents, 0 to 1; rounded to at least one model.
        owners: How many owners, at least 2.
        affected: How many models are affected; None: half of those with parents, rounded up.
        num_classes: How many labels there are.
        forget: The labels to forget.
        seed: Same arguments, same graph.

    Raises:
        ScenarioError: If an argument is out of range, or so many parents cannot be had.
    """
    rng = Random(seed)
    first = _without_parents(nodes, roots, rng)
    children = [i for i in range(nodes) if i not in first]
    wanted = (len(children) + 1) // 2 if affected is None else affected
    _check(in_degree, owners, wanted, len(children), num_classes, forget)
    hit = set(rng.sample(children, wanted))
    counts = _parent_counts(nodes, children, hit, round(in_degree * len(children)), rng)
    names = [f"m{i:0{len(str(nodes - 1))}d}" for i in range(nodes)]
    people = [f"o{i}" for i in range(owners)]
    holders, others = people[: owners // 2], people[owners // 2 :]
    clean: list[int] = []
    reached: list[int] = []
    models = []
    for i in range(nodes):
        if i in first:
            parents, owner = [], None
        elif i in hit:
            parents = rng.sample(range(i), counts[i])
            owner = rng.choice(people) if reached else rng.choice(holders)
            if owner not in holders and not any(p in hit for p in parents):
                parents[0] = rng.choice(reached)
        else:
            parents, owner = rng.sample(clean, counts[i]), rng.choice(others)
        (reached if i in hit else clean).append(i)
        models.append(PlannedModel(names[i], [names[p] for p in sorted(parents)], owner))
    kept = tuple(c for c in range(num_classes) if c not in forget)
    labels = {o: tuple(range(num_classes)) if o in holders else kept for o in people}
    about = f"{nodes} models that inherit from random older ones, {wanted} of them what is to be forgotten"
    return Scenario("random", about, tuple(models), labels, tuple(sorted(set(forget))))


def random_graph(
    num_classes: int, forget: Iterable[int] | None = None, length: int | None = None
) -> Scenario:
    """A random graph as a scenario: 20 models unless ``length`` says otherwise; see `random_dag`.

    Args:
        num_classes: How many labels there are.
        forget: Labels to forget; by default, whatever the number of labels: 0.
        length: How many models, at least 2.

    Raises:
        ScenarioError: If these labels cannot be forgotten, or there are too few models.
    """
    gone = to_forget(num_classes, forget, 1)
    return random_dag(20 if length is None else length, num_classes=num_classes, forget=gone)


def _without_parents(nodes: int, share: float, rng: Random) -> set[int]:
    """The oldest model, and random others."""
    if nodes < 2:
        raise ScenarioError(f"a random graph needs at least 2 nodes, got {nodes}")
    if not 0 <= share <= 1:
        raise ScenarioError(f"roots is a share of the models, from 0 to 1, got {share!r}")
    number = max(1, round(share * nodes))
    if number == nodes:
        raise ScenarioError(
            f"with roots={share:g} none of {nodes} models would have parents; use a lower share"
        )
    return {0, *rng.sample(range(1, nodes), number - 1)}


def _check(
    in_degree: float,
    owners: int,
    affected: int,
    children: int,
    num_classes: int,
    forget: Sequence[int],
) -> None:
    if not 1 <= in_degree < math.inf:
        raise ScenarioError(f"in_degree is a mean over models with parents, at least 1, got {in_degree!r}")
    if owners < 2:
        raise ScenarioError(f"at least 2 owners are needed, one who holds what is forgotten, got {owners}")
    if not 1 <= affected <= children:
        raise ScenarioError(
            f"of {children} models with parents 1 to {children} can be affected, got {affected}"
        )
    if not forget or not all(0 <= c < num_classes for c in forget) or len(set(forget)) == num_classes:
        raise ScenarioError(
            f"forget must name some of the labels 0 to {num_classes - 1}, and not all, got {tuple(forget)}"
        )


def _parent_counts(
    nodes: int, children: Sequence[int], hit: set[int], total: int, rng: Random
) -> dict[int, int]:
    """How many parents each model has: one, and the rest of ``total`` drawn among those with room."""
    room, clean = {}, 0
    for i in range(nodes):
        room[i] = i if i in hit else clean
        clean += i not in hit
    most = sum(room[i] for i in children)
    if total > most:
        raise ScenarioError(
            f"these {nodes} models can have {most / len(children):.2f} parents on average, got in_degree="
            f"{total / len(children):g}; use more nodes, fewer roots or a lower in_degree"
        )
    counts = dict.fromkeys(children, 1)
    spare = [i for i in children if room[i] > 1]
    for _ in range(total - len(children)):
        at = rng.randrange(len(spare))
        counts[spare[at]] += 1
        if counts[spare[at]] == room[spare[at]]:
            spare[at] = spare[-1]
            spare.pop()
    return counts
