"""Ways to forget in a whole graph, put side by side: ours, and the settings of the paper's code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.fisher import FisherSums
from fl_unlearn.graph_unlearning import Found, find
from fl_unlearn.lineage import Node
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import REST, UnlearnSettings, signature_of
from simulations.inheritance.config import Config
from simulations.inheritance.progress import Tell
from simulations.inheritance.tasks import FederationOwners
from simulations.inheritance.world import World
from strategies.client import Part
from strategies.contract import Federation, State
from strategies.fisher import ask_fisher, over_rest


@dataclass(frozen=True)
class Bench:
    """What a method works on.

    Attributes:
        world: The scenario, its data and model.
        federation: The owners.
        graph: The trained models; a method reads them, and changes none.
        tell: Told what is done next.
    """

    world: World
    federation: Federation
    graph: ModelGraph
    tell: Tell = print


@dataclass(frozen=True)
class Applied:
    """What a method made.

    Attributes:
        updates: Affected model to the update it gets; empty when refused.
        seconds: Computing time of all owners together; on a CPU, processor time.
        wall: Seconds from the request to the last update.
        rounds: How often owners were asked and waited for.
        facts: What a reader of the result should know.
        refused: Why nothing was changed.
    """

    updates: Mapping[str, DampeningUpdate]
    seconds: float
    wall: float
    rounds: int
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    refused: str = ""

    def state(self, graph: ModelGraph, name: str) -> State:
        """A model's values after the update; unchanged where it gets none."""
        state = graph.state(name)
        return apply_update(state, self.updates[name]) if name in self.updates else state


def settings_of(config: Config, head: str) -> UnlearnSettings:
    """Ours, as a config says it."""
    share = config.reference_share
    return UnlearnSettings(
        head=head,
        fisher_scope=config.scope,
        merge_rule=config.merge_rule,
        threshold=config.threshold or None,
        reference_share=share if share < 1 else None,
        calibration_samples=config.calibration_samples,
    )


def ours(bench: Bench, settings: UnlearnSettings | None = None) -> Applied:
    """One calibrated update for the whole graph (`fl_unlearn.graph_unlearning`)."""
    world, cost = bench.world, bench.federation.cost
    used = settings or settings_of(world.config, world.head)
    seconds, rounds, began = cost.client_seconds, cost.rounds, time.perf_counter()
    found = find(bench.graph, world.request, FederationOwners(bench.federation), used, tell=bench.tell)
    wall = time.perf_counter() - began
    spent = bench.federation.cost
    return Applied(
        found.updates,
        spent.client_seconds - seconds,
        wall,
        spent.rounds - rounds,
        _facts(found),
        found.refused,
    )


def _facts(found: Found) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {"roots": len(found.roots), "sources": ", ".join(found.sources)}
    distinct = {u.digest: u for u in found.updates.values()}
    for key in ("threshold", "dampening", "selected"):
        facts[key] = ", ".join(f"{getattr(u, key):g}" for u in distinct.values())
    return facts


def paper(bench: Bench) -> Applied:
    """The settings of the paper's code (arXiv 2408.08493), as `strategies.fiun_paper` has them.

    F is the squared gradient of the mean of a mini-batch of 32, of the head alone. Each root's owner computes
    F_forget on its root; these are merged by their element-wise maximum, divided by a constant once per
    further root. Every affected model has a reference of its own, over all data of its owner; where it
    has none, over that of all owners behind it. The threshold is set by hand, and nothing is measured before
    it is done.
    """
    graph, config = bench.graph, bench.world.config
    cost = bench.federation.cost
    seconds, rounds, began = cost.client_seconds, cost.rounds, time.perf_counter()
    roots = _roots(bench)
    parts = []
    for root in roots:
        assert root.owner is not None
        sums = _batch_fisher(bench, graph.state(root.name), "forget", [root.owner])[root.owner]
        parts.append(FisherPart(root.name, REST, sums.mean(), sums.counts[REST]))
    divisor = config.paper_divisor ** (len(parts) - 1)
    merged = {n: f / divisor for n, f in merge(parts, "max").items()}
    updates = {}
    affected = [n.name for n in graph.umig.affected(r.name for r in roots)]
    for i, name in enumerate(affected, start=1):
        bench.tell(f"paper's settings: reference of {name} ({i} of {len(affected)} models)")
        node, state = graph.umig.node(name), graph.state(name)
        whose = [node.owner] if node.owner else graph.owners_behind(name)
        reference = over_rest(_batch_fisher(bench, state, "train", whose))
        updates[name] = build_update(
            merged, reference, threshold=config.paper_threshold, signature=signature_of(state)
        )
    wall, spent = time.perf_counter() - began, bench.federation.cost
    facts: dict[str, str | int | float] = {"roots": len(roots), "threshold": config.paper_threshold}
    return Applied(updates, spent.client_seconds - seconds, wall, spent.rounds - rounds, facts)


def _roots(bench: Bench) -> list[Node]:
    """The first models that holders of what is to be forgotten trained."""
    counts = FederationOwners(bench.federation).counts(bench.world.request)
    held = [owner for owner, own in counts.items() if sum(n for c, n in own.items() if c != REST)]
    return bench.graph.umig.roots(held)


def _batch_fisher(bench: Bench, state: State, part: Part, owners: Sequence[str]) -> dict[str, FisherSums]:
    """Owner to its Fisher sums of the head, of mini-batches of 32 as in the paper's code."""
    return ask_fisher(
        bench.federation,
        state,
        kind="batch",
        scope="head",
        part=part,
        clients=owners,
        head=bench.world.head,
        batch_size=32,
    )


METHODS: dict[str, Callable[[Bench], Applied]] = {"ours": ours, "paper": paper}
"""Name to method."""

KEYS = (
    *("scope", "merge_rule", "threshold", "reference_share", "calibration_samples"),
    *("paper_threshold", "paper_divisor"),
)
"""Fields of a `Config` that decide what methods do; nothing that was trained depends on them."""
