"""Forgetting classes in every model that inherited them, over any inheritance graph; no Flower needed.

Owners compute Fisher sums of some affected models, the *sources*, spread evenly from first to newest; of each
model it is those owners whose data it has inherited. The forget Fishers of all sources, holders and classes
are merged (MFIM), the reference is the mean of the sources', and one FIUn update is built of both.
Owners then score its variants, one for each threshold and dampening, on the affected models. The one that
forgets on all of them at the least cost is applied to all, in parallel. Where none suits all, each model gets
the one that suits it; where a model has none, nothing is changed. Models that did not inherit what is to be
forgotten are left as they are.

The newest models alone served chains worse as sources: over 30 stages of digits the worst model then lost 4.2
points, with four sources 0.6 (`simulations.inheritance`, seed 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fl_unlearn import evidence
from fl_unlearn.apply import stage
from fl_unlearn.calibration import Candidate, choose, explain_refusal, judge, sum_scores
from fl_unlearn.centring import centred, head_among
from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.evidence import spread as spread
from fl_unlearn.graph_owners import LocalOwners as LocalOwners
from fl_unlearn.graph_owners import Owners as Owners
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import (
    REST,
    ForgetRequest,
    RequestError,
    SettingsError,
    UnlearnSettings,
    signature_of,
)

Told = Callable[[str], None]
"""Called with what is done next, in words."""


@dataclass(frozen=True)
class Found:
    """What was found for a request; nothing is changed yet.

    Attributes:
        request: The request.
        roots: The first models that learned what is to be forgotten.
        affected: They and everything that inherits from them, in chronological order.
        sources: The models whose Fishers the update is made of.
        scored: Model to what was measured there of each variant of the update, in the order of
            ``settings.grid``.
        shared: What was chosen for all models; None where each has its own, or was refused.
        updates: Affected model to the update it gets, a variant of one; empty when refused.
        refused: Why nothing may be changed.
    """

    request: ForgetRequest
    roots: tuple[str, ...]
    affected: tuple[str, ...]
    sources: tuple[str, ...]
    scored: Mapping[str, Sequence[Candidate]]
    shared: Candidate | None
    updates: Mapping[str, DampeningUpdate]
    refused: str = ""

    def commit(self, graph: ModelGraph) -> int:
        """Apply the updates to every affected checkpoint, all or nothing.

        Returns:
            How many checkpoints were changed; those that had the update before are left as they are.

        Raises:
            RequestError: If the request was refused, or the graph is another one.
            StoreError: If they cannot be written; nothing is changed then.
        """
        if not self.updates:
            raise RequestError(self.refused or "there is no update to apply")
        if strange := [name for name in self.updates if name not in graph]:
            raise RequestError(f"{graph.store.folder} has no model {strange[0]!r}; is it the right graph?")
        staged = stage(graph.store, self.updates, self.updates[self.affected[-1]])
        record = {**self.request.to_json(), "roots": list(self.roots)}
        if self.shared is not None:
            record |= {"threshold": self.shared.threshold, "dampening": self.shared.dampening}
        staged.commit(record)
        return len(staged.files)


def find(
    graph: ModelGraph,
    request: ForgetRequest,
    owners: Owners,
    settings: UnlearnSettings | None = None,
    *,
    most_sources: int = 4,
    most_scored: int = 50,
    centre: bool = True,
    tell: Told = lambda text: None,
) -> Found:
    """Find the update that makes every affected model forget classes, or why there is none.

    Classes that earlier requests made everybody forget are forgotten along with them: without a rival that is
    forgotten now, they could win again. Owners of the graph who are not among ``owners`` count as holders.

    Args:
        graph: The models.
        request: Classes, of all owners or of some.
        owners: Those who own the data.
        settings: How; of them those of the network, of erasing, ``reference``, ``calibration_models``,
            ``measures`` and ``executor`` play no part.
        most_sources: Of how many models the Fisher is computed at most; evenly spread.
        most_scored: On how many models variants are scored at most; evenly spread, and all sources. Neither
            are models without a checkpoint, or without samples to forget and to keep behind them.
        centre: Whether what is the same in all of the head's rows is taken out of every model first
            (`centring`): it changes no probability, and a class whose logit is brought to 0 does not win.
        tell: Told what is done next.

    Raises:
        RequestError: If no model learned what is to be forgotten or can be measured, or nothing is kept.
        SettingsError: If the settings cannot be used on a graph.
    """
    s = settings or UnlearnSettings()
    if request.kind != "classes":
        raise RequestError(f"over a graph only classes can be forgotten, got a request for {request.kind}")
    if s.erases or s.reference != "shared":
        raise SettingsError("over a graph, use erase='none' and reference='shared'")
    if most_sources < 1 or most_scored < 1:
        raise SettingsError(
            f"at least one model is looked at, got most_sources={most_sources}, most_scored={most_scored}"
        )
    wide = evidence.with_earlier(request, graph.store)
    counts = owners.counts(wide)
    held = evidence.holders(request, graph.store, counts)
    roots, affected = evidence.lineage(request, graph.store, counts, held, all_affected=s.all_affected)
    usable = evidence.measurable(graph.store, affected, counts)
    sources = tuple(spread(usable, most_sources))
    work = _Work(graph, wide, owners, s, counts, tell)
    base = work.base(sources, centre)
    wanted = {*sources, *spread(usable, most_scored)}
    scored = {name: work.judged(name, base) for name in affected if name in wanted}
    shared, own = choose_for(scored, by_loss=len(scored) == len(affected), force=s.force)
    found = Found(request, roots, affected, sources, scored, shared, {})
    if not own:
        worst = max(scored.values(), key=lambda cs: min((c.forget_accuracy, c.retain_drop) for c in cs))
        return replace(found, refused=explain_refusal(worst, s))
    chosen = {name: own[nearest(affected, name, own)] for name in affected}
    variants = {c: base.variant(*c) for c in set(chosen.values())}
    return replace(found, updates={name: variants[c] for name, c in chosen.items()})


def choose_for(
    scored: Mapping[str, Sequence[Candidate]], *, by_loss: bool = True, force: bool = False
) -> tuple[Candidate | None, dict[str, tuple[float, float]]]:
    """The variant that passes on every model at the least mean cost; failing that, each model's own.

    Args:
        scored: Model to what was measured of each variant; not empty, the same variants everywhere.
        by_loss: Whether the retained loss decides between like costs (`calibration.choose`). It favours large
            thresholds, which only just forget: not where there are models that were not scored.
        force: Take the first variant whatever was measured.

    Returns:
        What was chosen for all, with the worst accuracy, the worst drop and the mean cost over the models, or
        None; and model to threshold and dampening, empty if there is a model without any that passes.
    """
    together = [_joined(same) for same in zip(*scored.values(), strict=True)]
    best = together[0] if force else choose(together, by_loss=by_loss)
    if best is not None:
        return best, dict.fromkeys(scored, (best.threshold, best.dampening))
    own = {name: choose(candidates, by_loss=by_loss) for name, candidates in scored.items()}
    fine = {name: (c.threshold, c.dampening) for name, c in own.items() if c is not None}
    return None, fine if len(fine) == len(own) else {}


def _joined(same: Sequence[Candidate]) -> Candidate:
    """One variant over all models."""
    forget, drop = max(c.forget_accuracy for c in same), max(c.retain_drop for c in same)
    return Candidate(
        same[0].threshold,
        same[0].dampening,
        forget,
        min(c.retain_accuracy for c in same),
        drop,
        forget,
        drop,
        sum(c.cost for c in same) / len(same),
        all(c.passed for c in same),
        all(c.everywhere for c in same),
        sum(c.retain_loss_change for c in same) / len(same),
    )


class _Work:
    """A request as it is served: what the owners are asked."""

    def __init__(
        self,
        graph: ModelGraph,
        request: ForgetRequest,
        owners: Owners,
        settings: UnlearnSettings,
        counts: Mapping[str, Mapping[int, int]],
        tell: Told,
    ) -> None:
        self.graph, self.request, self.owners = graph, request, owners
        self.settings, self.counts, self.tell = settings, counts, tell

    def base(self, sources: Sequence[str], centre: bool) -> DampeningUpdate:
        """The update of which all candidates are variants, from the Fishers of the sources."""
        parts: list[FisherPart] = []
        references = []
        for i, name in enumerate(sources, start=1):
            self.tell(f"Fisher of {name} (source {i} of {len(sources)})")
            state = self.graph.state(name)
            fishers = self.owners.fishers(state, self.request, self.settings, self.behind(name))
            parts += evidence.parts(fishers)
            references.append(evidence.retained(fishers.values()).mean([REST]))
        merged = merge(parts, self.settings.merge_rule)
        signature = signature_of(self.graph.state(sources[-1]))
        erasures = {}
        if centre:
            head = head_among(merged, self.settings.fisher_scope, self.settings.head)
            erasures = centred(head, self.request.classes, signature)
        return build_update(
            merged,
            {n: torch.stack([r[n] for r in references]).mean(dim=0) for n in merged},
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature,
            erasures=erasures,
        )

    def judged(self, name: str, base: DampeningUpdate) -> list[Candidate]:
        """What owners measure of every candidate on one model, on samples of data that it has inherited."""
        self.tell(f"scoring {len(self.settings.grid)} variants on {name}")
        state = self.graph.state(name)
        scores = self.owners.scores(state, self.request, self.settings, base, self.behind(name))
        return judge(sum_scores({o: [own] for o, own in scores.items()}, self.request), self.settings)

    def behind(self, name: str) -> list[str]:
        return [owner for owner in self.graph.owners_behind(name) if owner in self.counts]


def nearest(names: Sequence[str], name: str, among: Mapping[str, Any]) -> str:
    """Of ``among``, the one that is nearest to ``name`` in the order of ``names``, the newer one of two."""
    at = {n: i for i, n in enumerate(names)}
    return min(among, key=lambda other: (abs(at[other] - at[name]), -at[other]))
