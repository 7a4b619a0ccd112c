"""From a request to the update that serves it: Fishers, merge, calibration. Nothing is changed here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from fl_unlearn import evidence, request_log
from fl_unlearn.calibration import Candidate, choose, explain_refusal, judge, measured
from fl_unlearn.calibration_data import choose_data, judge_data, like_labels
from fl_unlearn.caps import capped
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.erasing import erased, find_erasures
from fl_unlearn.flower.ask_data_scores import ask_data_scores
from fl_unlearn.flower.ask_fisher import ask_fisher
from fl_unlearn.flower.ask_scores import ask_scores
from fl_unlearn.flower.ask_statistics import ask_statistics
from fl_unlearn.flower.double_check import caps_of, head_of
from fl_unlearn.flower.exchange import unidentified
from fl_unlearn.flower.names import remember
from fl_unlearn.flower.panel import Panel
from fl_unlearn.flower.progress import Progress, digest_of
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.gather import FisherGather
from fl_unlearn.pooled import PooledFisher
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import signature_of
from fl_unlearn.update import ErasedLayer

Gathered = FisherGather | PooledFisher

log = logging.getLogger(__name__)

NO_HELD_OUT = (
    "a client's data and single samples can only be judged against held-out samples, which tell what is not "
    "trained on, and no client has any. Nothing was changed; let `data` return (training, held-out)"
)


@dataclass(frozen=True)
class Found:
    """What was decided.

    Attributes:
        candidate: What the clients measured of it.
        update: For the current model and the clients' copies.
        updates: For each affected model.
    """

    candidate: Candidate
    update: DampeningUpdate
    updates: dict[str, DampeningUpdate]


class Search:
    """The phases of one request up to its commit.

    Args:
        panel: The clients.
        store: The run's store.
        state: The current global model.
        progress: How far the request had come before its server died.
        result: What has become of it; is filled in.
        note: Notes that a phase is completed.
    """

    def __init__(
        self,
        panel: Panel,
        store: RunStore,
        state: dict[str, torch.Tensor],
        progress: Progress,
        result: ForgetResult,
        note: Callable[[str], None],
    ) -> None:
        self.panel, self.store, self.state = panel, store, state
        self.request, self.settings = panel.request, panel.settings
        self.progress, self.result, self.note = progress, result, note

    def find(self) -> Found | None:
        """Go through the phases that are not completed yet; None: refused, and the result says why.

        Raises:
            UnlearnError: As `session.forget`.
        """
        merged, base = {}, self.progress.base
        if base is None:
            erasures = self._find_erasures()
            gathered = ask_fisher(self.panel, erased(self.state, erasures))
            self._learn(gathered)
            merged = gathered.merged()
            base = self._build(merged, gathered, erasures)
            if self.settings.reference == "shared":
                self.progress.keep_base(base)
                self.note(request_log.FISHER)
        decide = self._calibrate if self.request.kind == "classes" else self._calibrate_data
        chosen = self.progress.candidate() or decide(base)
        if chosen is None:
            return None
        update = base.variant(chosen.threshold, chosen.dampening)
        updates = dict.fromkeys(self.result.affected, update)
        if self.settings.reference == "per-model":
            updates = self._per_model(merged, update)
        return Found(chosen, update, updates)

    def _learn(self, gathered: Gathered) -> None:
        """Who holds what, and which models inherited it."""
        r, counts = self.result, {**{c: {} for c in self.panel.answered}, **gathered.counts}
        r.holders = evidence.holders(self.request, self.store, counts, gathered.num_classes)
        for node, client in self.panel.names.items():
            self.store.identify(unidentified(node), client)
        remember(self.store, self.panel.names)
        distrusted = set(self.settings.defence.distrusted)
        if strange := distrusted - set(self.panel.names.values()) - set(self.panel.remembered.values()):
            log.warning("defence.distrusted names clients that are not there: %s", sorted(strange)[:10])
        r.roots, r.affected = evidence.lineage(
            self.request,
            self.store,
            counts,
            r.holders,
            all_affected=self.settings.all_affected or self.settings.privacy.sums_only,
        )

    def _find_erasures(self) -> Mapping[str, ErasedLayer]:
        if not self.settings.erases:
            return {}
        ask = partial(ask_statistics, self.panel)
        return find_erasures(ask, self.request, self.settings, self.store, self.state)

    def _build(
        self, merged: dict[str, torch.Tensor], gathered: Gathered, erasures: Mapping[str, ErasedLayer]
    ) -> DampeningUpdate:
        built = build_update(
            merged,
            gathered.reference(),
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(self.state),
            erasures=erasures,
        )
        spared = {*self.request.classes, *self.panel.ignored}
        return capped(built, caps_of(self.settings, self.request), spared, head_of(self.settings))

    def _per_model(
        self, merged: dict[str, torch.Tensor], current: DampeningUpdate
    ) -> dict[str, DampeningUpdate]:
        """The paper's form: the shared forget Fisher against each checkpoint's own reference."""
        updates = dict.fromkeys(self.result.affected, current)
        for name in sorted(set(self.result.affected) & self.store.kept()):
            state = erased(self.store.load(name).state, current.erasures)
            built = self._build(merged, ask_fisher(self.panel, state, passing=True), current.erasures)
            updates[name] = built.variant(current.threshold, current.dampening)
        return updates

    def _calibrate(self, base: DampeningUpdate) -> Candidate | None:
        r = self.result
        states = [self.state]
        if self.settings.reference == "shared":
            most = self.settings.calibration_models - 1
            states += evidence.earlier_models(self.store, r.affected, r.holders, most)
        scored = ask_scores(self.panel, states, base)
        r.before = (scored.rows[0][0].forget, scored.rows[0][0].retain)
        r.candidates = tuple(judge(scored.rows, self.settings, scored.votes))
        self.progress.scored = (scored.clients, len(self.panel.nodes))
        chosen = r.candidates[0] if self.settings.force else choose(r.candidates)
        if chosen is not None and scored.votes is not None:
            self.progress.promised = scored.votes.said(1 + r.candidates.index(chosen))
        needed = r.holders if len(r.holders) == 1 else ()
        return self._taken(base, chosen or explain_refusal(r.candidates, self.settings, needed))

    def _calibrate_data(self, base: DampeningUpdate) -> Candidate | None:
        """For a client or samples; earlier models are not looked at."""
        r, s = self.result, self.settings
        scored = ask_data_scores(self.panel, self.state, base)
        r.before = (scored.forget[0], scored.held[0])
        self.progress.scored = (scored.clients, len(self.panel.nodes))
        if not scored.held[0].total:
            return self._taken(base, NO_HELD_OUT)
        r.like_labels = like_labels(scored.forget[0], scored.held[0], scored.votes)
        r.candidates = tuple(judge_data(scored.forget, scored.held, r.like_labels, s, scored.votes))
        known = measured(scored.forget[0], "forgotten")
        chosen = choose_data(r.candidates, known, r.like_labels, s, self.request.named)
        if isinstance(chosen, Candidate):
            self.progress.promised = scored.said(1 + r.candidates.index(chosen))
        return self._taken(base, chosen)

    def _taken(self, base: DampeningUpdate, chosen: Candidate | str) -> Candidate | None:
        """Note what was chosen, or why nothing was."""
        r = self.result
        if isinstance(chosen, str):
            r.message = f"refused: {chosen}"
            return None
        update = base.variant(chosen.threshold, chosen.dampening)
        if update.empty:
            r.message = (
                f"refused: the chosen update (t = {chosen.threshold:g}) changes no value, so nothing was "
                f"changed. Clients measure {chosen.forget_accuracy:.1%} on the forgotten data as it is"
            )
            return None
        self.progress.chosen = (chosen.threshold, chosen.dampening)
        self.progress.scored_update = update.digest
        self.progress.expected = digest_of(apply_update(self.state, update))
        self.note(request_log.CALIBRATED)
        return chosen
