"""From a request to the update that serves it: Fishers, merge, calibration. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from fl_unlearn import evidence, request_log
from fl_unlearn.calibration import Candidate, choose, explain_refusal, judge
from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.erasing import erased, find_erasures
from fl_unlearn.flower.ask_fisher import ask_fisher
from fl_unlearn.flower.ask_scores import ask_scores
from fl_unlearn.flower.ask_statistics import ask_statistics
from fl_unlearn.flower.exchange import unidentified
from fl_unlearn.flower.names import remember
from fl_unlearn.flower.panel import Panel
from fl_unlearn.flower.progress import Progress
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.gather import FisherGather
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import signature_of
from fl_unlearn.update import ErasedLayer


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
        chosen = self.progress.candidate() or self._calibrate(base)
        if chosen is None:
            return None
        update = base.variant(chosen.threshold, chosen.dampening)
        updates = dict.fromkeys(self.result.affected, update)
        if self.settings.reference == "per-model":
            updates = self._per_model(merged, update)
        return Found(chosen, update, updates)

    def _learn(self, gathered: FisherGather) -> None:
        """Who holds what, and which models inherited it."""
        r, counts = self.result, gathered.counts
        r.holders = evidence.holders(self.request, self.store, counts, gathered.num_classes)
        for node, client in self.panel.names.items():
            self.store.identify(unidentified(node), client)
        remember(self.store, self.panel.names)
        r.roots, r.affected = evidence.lineage(
            self.request, self.store, counts, r.holders, all_affected=self.settings.all_affected
        )

    def _find_erasures(self) -> Mapping[str, ErasedLayer]:
        if not self.settings.erases:
            return {}
        ask = partial(ask_statistics, self.panel)
        return find_erasures(ask, self.request, self.settings, self.store, self.state)

    def _build(
        self, merged: dict[str, torch.Tensor], gathered: FisherGather, erasures: Mapping[str, ErasedLayer]
    ) -> DampeningUpdate:
        return build_update(
            merged,
            gathered.reference(),
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(self.state),
            erasures=erasures,
        )

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
        r.candidates = tuple(judge(scored.rows, self.settings))
        self.progress.scored = (scored.clients, len(self.panel.nodes))
        chosen = r.candidates[0] if self.settings.force else choose(r.candidates)
        if chosen is None:
            r.message = "refused: " + explain_refusal(r.candidates, self.settings)
        elif base.variant(chosen.threshold, chosen.dampening).empty:
            r.message = (
                f"refused: the chosen update (t = {chosen.threshold:g}) changes no value, so nothing was "
                f"changed. Clients measure {chosen.forget_accuracy:.1%} on the forgotten data as it is"
            )
            return None
        if chosen is not None:
            self.progress.chosen = (chosen.threshold, chosen.dampening)
            self.note(request_log.CALIBRATED)
        return chosen
