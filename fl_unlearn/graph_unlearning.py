"""Forgetting classes in every model that inherited them, over any inheritance graph; no Flower needed.

Owners compute Fisher sums of the graph's *sources*: the newest affected models, those that no affected model
inherits from. The forget Fishers of all sources, holders and classes are merged (MFIM), the reference is the
mean over the sources' retained data, and one FIUn update is built of both. Owners score every candidate on the
affected models; what is chosen is applied to all of them in parallel. Nothing is measured, or changed, on models
that did not inherit what is to be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fl_unlearn import evidence
from fl_unlearn.apply import stage
from fl_unlearn.batches import sample, unpack
from fl_unlearn.calibration import Candidate, explain_refusal, judge, sum_scores
from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import (
    REST,
    ClassScores,
    ForgetRequest,
    RequestError,
    SettingsError,
    StateDict,
    UnlearnSettings,
    signature_of,
)
from fl_unlearn.verify import score_candidates

Told = Callable[[str], None]
"""Called with what is done next, in words."""


class Owners(Protocol):
    """Those who own the data: in this process, behind Flower, or anywhere else."""

    def counts(self, request: ForgetRequest) -> Mapping[str, Mapping[int, int]]:
        """Owner to its number of samples of each requested class, and of all that is kept (`types.REST`)."""

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> Mapping[str, FisherSums]:
        """Owner to its Fisher sums of a model: a group for each requested class, and `types.REST`."""

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> Mapping[str, Sequence[ClassScores]]:
        """Owner to its scores of a model: as it is, then under each candidate of ``settings.grid``."""


class LocalOwners:
    """Owners in this process.

    Args:
        build: Builds the model; its values do not matter.
        data: Owner to its batches of (inputs, labels), as `batches.unpack` takes them; gone through often.
        device: Where to compute.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        data: Mapping[str, Iterable[Any]],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._build, self._data, self._device = build, data, torch.device(device)

    def counts(self, request: ForgetRequest) -> dict[str, dict[int, int]]:
        """See `Owners.counts`."""
        found = {}
        for owner, batches in self._data.items():
            labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(unpack(b)[1] for b in batches)])
            named = not request.clients or owner in request.clients
            own = {c: int((labels == c).sum()) if named else 0 for c in request.classes}
            found[owner] = {**own, REST: len(labels) - sum(own.values())}
        return found

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> dict[str, FisherSums]:
        """See `Owners.fishers`."""
        model = self._model(state)
        return {
            owner: fisher_diagonal(
                model,
                self._data[owner],
                kind=settings.fisher_kind,
                scope=settings.fisher_scope,
                head=settings.head,
                keep_classes=request.classes if not request.clients or owner in request.clients else (),
                reference_share=settings.reference_share,
                device=self._device,
            )
            for owner in owners
        }

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> dict[str, list[ClassScores]]:
        """See `Owners.scores`."""
        model, found = self._model(state), {}
        candidates = [None, *(base.variant(t, lam) for t, lam in settings.grid)]
        for owner in owners:
            data = sample(self._data[owner], request.classes, settings.calibration_samples)
            found[owner] = score_candidates(
                model, data, candidates, device=self._device, head=settings.head
            )
        return found

    def _model(self, state: StateDict) -> nn.Module:
        model = self._build()
        model.load_state_dict(dict(state))
        return model.to(self._device).eval()


@dataclass(frozen=True)
class Found:
    """What was found for a request; nothing is changed yet.

    Attributes:
        roots: The first models that learned what is to be forgotten.
        affected: They and everything that inherits from them, in chronological order.
        sources: The models whose Fishers the update is made of.
        scored: Model to what was measured of each candidate there.
        updates: Affected model to the update it gets; empty when refused.
        refused: Why nothing may be changed.
    """

    roots: tuple[str, ...]
    affected: tuple[str, ...]
    sources: tuple[str, ...]
    scored: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    updates: Mapping[str, DampeningUpdate] = field(default_factory=dict)
    refused: str = ""

    def commit(self, graph: ModelGraph, request: ForgetRequest) -> int:
        """Apply the updates to every affected checkpoint, all or nothing; how many were changed.

        Raises:
            RequestError: If the request was refused.
            StoreError: If they cannot be written; nothing is changed then.
        """
        if not self.updates:
            raise RequestError(self.refused or "there is no update to apply")
        newest = self.updates[self.affected[-1]]
        staged = stage(graph.store, self.updates, newest)
        staged.commit(request.to_json())
        return len(staged.files)


def find(
    graph: ModelGraph,
    request: ForgetRequest,
    owners: Owners,
    settings: UnlearnSettings | None = None,
    *,
    most_sources: int = 8,
    tell: Told = lambda text: None,
) -> Found:
    """Find the update that makes every affected model forget classes, or why there is none.

    Args:
        graph: The models.
        request: Classes, of all owners or of some.
        owners: Those who own the data.
        settings: How; those of the network, of erasing and ``calibration_models`` play no part.
        most_sources: Most models whose Fishers are computed.
        tell: Told what is done next.

    Raises:
        RequestError: If nothing in the graph learned what is to be forgotten, or nothing would be kept.
        SettingsError: If the settings cannot be used on a graph.
    """
    s = settings or UnlearnSettings()
    if request.kind != "classes":
        raise RequestError(f"over a graph only classes can be forgotten, got a request for {request.kind}")
    if s.erases:
        raise SettingsError("over a graph nothing is erased in hidden layers; use erase='none'")
    counts = owners.counts(request)
    held = evidence.holders(request, graph.store, counts)
    roots = tuple(n.name for n in graph.umig.roots(held))
    if not roots:
        raise RequestError(f"no model in {graph.store.folder} was trained on the data of {sorted(held)}")
    affected = tuple(n.name for n in graph.umig.affected(roots))
    return _Work(graph, request, owners, s, roots, affected, counts).found(most_sources, tell)


class _Work:
    def __init__(
        self,
        graph: ModelGraph,
        request: ForgetRequest,
        owners: Owners,
        settings: UnlearnSettings,
        roots: tuple[str, ...],
        affected: tuple[str, ...],
        counts: Mapping[str, Mapping[int, int]],
    ) -> None:
        self.graph, self.request, self.owners, self.settings = graph, request, owners, settings
        self.roots, self.affected, self.counts = roots, affected, counts

    def found(self, most_sources: int, tell: Told) -> Found:
        sources = spread(leaves(self.graph, self.affected), most_sources)
        parts: list[FisherPart] = []
        references = []
        for i, name in enumerate(sources, start=1):
            tell(f"Fisher of {name} ({i} of {len(sources)} sources)")
            fishers = self.fishers(name)
            parts += [
                FisherPart(f"{name}/{p.holder}", p.label, p.mean, p.count) for p in evidence.parts(fishers)
            ]
            references.append(evidence.retained(fishers.values()).mean([REST]))
        merged = merge(parts, self.settings.merge_rule)
        state = self.graph.state(sources[-1])
        reference = {n: torch.stack([r[n] for r in references]).mean(0) for n in merged}
        base = self.build(merged, reference, state)
        rows = {}
        for i, name in enumerate(self.affected, start=1):
            tell(f"scoring candidates on {name} ({i} of {len(self.affected)} models)")
            rows[name] = self.judged(name, base)
        return Found(self.roots, self.affected, tuple(sources), rows), base

    def fishers(self, name: str) -> Mapping[str, FisherSums]:
        behind = [o for o in self.graph.owners_behind(name) if o in self.counts]
        return self.owners.fishers(self.graph.state(name), self.request, self.settings, behind)

    def build(self, forget: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], state: StateDict) -> DampeningUpdate:
        return build_update(
            forget,
            reference,
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(state),
        )

    def judged(self, name: str, base: DampeningUpdate) -> list[Candidate]:
        behind = [o for o in self.graph.owners_behind(name) if o in self.counts]
        scores = self.owners.scores(self.graph.state(name), self.request, self.settings, base, behind)
        rows = sum_scores({o: [own] for o, own in scores.items()}, self.request)
        return judge(rows, self.settings)


def leaves(graph: ModelGraph, names: Sequence[str]) -> list[str]:
    """Those of some models from which no other of them inherits."""
    inner = {p for name in names for p in graph.umig.parents(name)}
    return [name for name in names if name not in inner]


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most ``most`` names, evenly spread from the first to the last."""
    most = min(most, len(names))
    return [names[round(i * (len(names) - 1) / max(1, most - 1))] for i in range(most)]
