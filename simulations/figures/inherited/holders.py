"""Forgetting without merging: each holder's update from its own Fishers, one applied after another."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fl_unlearn.dampen import DampeningUpdate, Entry
from fl_unlearn.fisher import FisherSums
from fl_unlearn.graph_unlearning import Found, Owners, find
from fl_unlearn.types import REST, ClassScores, ForgetRequest, StateDict, UnlearnSettings
from simulations.inheritance.methods import Applied, Bench
from simulations.inheritance.tasks import FederationOwners


class OneHolder:
    """Owners of whom only one has something to forget, and only its labels are asked about.

    See `fl_unlearn.graph_unlearning.Owners` for the methods.

    Args:
        inner: All owners.
        holder: The one.
        others: Labels to forget that it does not hold.
    """

    def __init__(self, inner: Owners, holder: str, others: Sequence[int]) -> None:
        self._inner, self._holder, self._others = inner, holder, frozenset(others)

    def counts(self, request: ForgetRequest) -> dict[str, dict[int, int]]:
        """The holder's numbers of samples, and what the others keep."""
        kept = {*request.classes, REST}
        return {
            o: {g: n for g, n in own.items() if g in (kept if o == self._holder else {REST})}
            for o, own in self._inner.counts(request).items()
        }

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> dict[str, FisherSums]:
        """The holder's sums, and the others' of what they keep."""
        found = self._inner.fishers(state, request, settings, owners)
        return {o: sums if o == self._holder else _only_rest(sums) for o, sums in found.items()}

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> Mapping[str, Sequence[ClassScores]]:
        """Everybody's scores, less the labels that other holders are to forget."""
        found = self._inner.scores(state, request, settings, base, owners)
        return {o: [one.without(self._others) for one in own] for o, own in found.items()}


def _only_rest(sums: FisherSums) -> FisherSums:
    return replace(sums, sums={REST: sums.sums[REST]}, counts={REST: sums.counts[REST]})


def one_after_another(bench: Bench, settings: UnlearnSettings) -> Applied:
    """Each holder's update on what descends from its first models, one after another; composed by model.

    The head is not centred before, as it is in ours.

    Args:
        bench: The graph and its owners.
        settings: Those of ours. Calibration, where they ask for it, looks at one holder's labels at a time.
    """
    owners, forget, cost = (
        FederationOwners(bench.federation),
        bench.world.scenario.forget,
        bench.federation.cost,
    )
    seconds, rounds, began = cost.client_seconds, cost.rounds, time.perf_counter()
    found: dict[str, Found] = {}
    for holder, own in owners.counts(bench.world.request).items():
        if mine := tuple(c for c in forget if own.get(c)):
            alone = OneHolder(owners, holder, [c for c in forget if c not in mine])
            # Maps of whole layers could not be composed with factors of single values.
            found[holder] = find(
                bench.graph, ForgetRequest(mine), alone, settings, centre=False, tell=bench.tell
            )
    updates: dict[str, list[DampeningUpdate]] = {}
    for one in found.values():
        for name, update in one.updates.items():
            updates.setdefault(name, []).append(update)
    wall, spent = time.perf_counter() - began, bench.federation.cost
    refused = "; ".join(f"{holder}: {one.refused}" for holder, one in found.items() if one.refused)
    together = {} if refused else {name: composed(own) for name, own in updates.items()}
    return Applied(together, spent.client_seconds - seconds, wall, spent.rounds - rounds, refused=refused)


def composed(updates: Sequence[DampeningUpdate]) -> DampeningUpdate:
    """One update that does what several do one after another; t and lambda are the last one's.

    Args:
        updates: One or more.

    Raises:
        ValueError: If one of them maps a whole layer, by erasing or centring.
    """
    if any(update.erasures for update in updates):
        raise ValueError("updates that map whole layers cannot be composed")
    specs = {name: entry.spec for update in updates for name, entry in update.entries.items()}
    entries = {}
    for name, spec in specs.items():
        factors = torch.ones(math.prod(spec.shape), dtype=torch.float64)
        for entry in (u.entries[name] for u in updates if name in u.entries):
            factors[entry.indices.long()] *= entry.factors.double()
        chosen = (factors < 1).nonzero().squeeze(1)
        entries[name] = Entry(chosen, factors[chosen].float(), spec)
    return replace(updates[-1], entries=entries)
