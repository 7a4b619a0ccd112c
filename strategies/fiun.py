"""``fiun`` and ``fiun-deep``: what the plug-in for Flower does, with the same arithmetic; and more targets.

Clients sum diagonal Fishers of the current global model, of what is to be forgotten and of what is kept. The
server merges the forget Fishers (MFIM), and builds one FIUn update with many thresholds t and dampenings
lambda: wherever F_forget > t F_reference, theta <- theta min(1, lambda F_reference / F_forget). Clients score
them all. For classes, the one that forgets at the least cost of retained accuracy is applied to every
affected checkpoint, or nothing is changed. ``fiun-deep`` first erases the classes in the last hidden layer.

A client's data, or single samples, is not to become unknown but to be as if it had not been trained on: how
that is decided, also by the plug-in, is told in `fl_unlearn.calibration_data`.

For classes, candidates are scored on training samples (``scored_on``), where the plug-in would take held-out
ones first ("held-out+train"): what a comparison measures on must not have chosen. A client or samples need
held-out ones, so there the held-out columns are of samples that had a part in choosing.

Hyper-parameters: ``preset`` = "fast" (``fiun``) or "deep" (``fiun-deep``); for clients and samples
`calibration_data.DATA`. ``settings``, any `UnlearnSettings`, takes the place of either; those of the network
play no part. All are ours and measured; the paper's are those of ``fiun-paper``. Targets: classes; ``fiun``
also a client, samples.
Needs the forget data and the retained data; for clients and samples, held-out samples at the clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from fl_unlearn import evidence
from fl_unlearn.calibration import Candidate, choose, explain_refusal, judge, sum_scores
from fl_unlearn.calibration_data import choose_for_data, like_labels, settings_for
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.erasing import erased, find_erasures
from fl_unlearn.fisher import FisherSums
from fl_unlearn.merge import merge
from fl_unlearn.types import ClassScores, StateDict, UnlearnSettings, signature_of
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, State, Strategy, Target, holders
from strategies.fisher import ask_fisher, over_rest
from strategies.fiun_tasks import ask_layer, ask_scores
from strategies.history import History


@dataclass(frozen=True)
class Fiun(Strategy):
    """One update, calibrated by the clients, for every affected checkpoint."""

    name: ClassVar[str] = "fiun"
    paper: ClassVar[str] = "ours, after Liu et al. 2024, arXiv 2408.08493"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("forget-data", "retained-data"))

    preset: str = "fast"
    settings: UnlearnSettings | None = None
    scored_on: str = "train"

    def __post_init__(self) -> None:
        UnlearnSettings.preset(self.preset)

    def problem(self, federation: Federation, history: History) -> str | None:
        """Only classes can be erased; the forget set of others is compared with held-out samples."""
        why = super().problem(federation, history)
        if why is not None or federation.request.kind == "classes":
            return why
        if self.settings is not None and self.settings.erases:
            return "only classes can be erased in hidden layers; use erase='none'"
        if not any(counts["held-out"] for counts in federation.clients.values()):
            return "it needs held-out samples, which tell what is not trained on, and no client has any"
        return None

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Find the update, and apply it; where no candidate passes, change nothing."""
        if federation.request.kind == "classes":
            settings = self.settings or UnlearnSettings.preset(self.preset)
            work = _Classes(federation, history, settings, self.scored_on)
        else:
            settings = self.settings or settings_for(federation.request, UnlearnSettings())
            work = _Data(federation, history, settings, self.scored_on)
        base = work.base()
        chosen = work.calibrate(base)
        if isinstance(chosen, str):
            return Outcome(work.state, facts=work.facts, refused=chosen)
        update = base.variant(chosen.threshold, chosen.dampening)
        if update.empty:
            why = f"the chosen update (t = {chosen.threshold:g}) changes no value"
            return Outcome(work.state, facts=work.facts, refused=why)
        work.note(chosen, update)

        def change(state: StateDict) -> State:
            if work.settings.reference == "shared":
                return apply_update(state, update)
            own = work.build(work.fisher(erased(state, update.erasures)), update.erasures)
            return apply_update(state, own.variant(chosen.threshold, chosen.dampening))

        return Outcome(apply_update(work.state, update), change, work.facts)


@dataclass(frozen=True)
class FiunDeep(Fiun):
    """The classes are erased in the last hidden layer before."""

    name: ClassVar[str] = "fiun-deep"
    targets: ClassVar[frozenset[Target]] = frozenset(("classes",))

    preset: str = "deep"


class _Classes:
    """A request for classes as it is served: the phases of `fl_unlearn.flower.session`, up to the commit."""

    def __init__(
        self, federation: Federation, history: History, settings: UnlearnSettings, scored_on: str
    ) -> None:
        self.scored_on = scored_on
        self.federation, self.request, self.store = federation, federation.request, history.store
        self.state, self.facts = history.current(), dict[str, str | int | float]()
        self.settings = replace(settings, head=settings.head or history.head)
        self.merged: State = {}
        self.counts: dict[str, Mapping[int, int]] = {}
        self.held: Mapping[str, int] = {}

    def base(self) -> DampeningUpdate:
        """The update of which all candidates are variants."""
        erasures = {}
        if self.settings.erases:
            ask = partial(ask_layer, self.federation, settings=self.settings)
            erasures = find_erasures(ask, self.request, self.settings, self.store, self.state)
        fishers = self.fisher(erased(self.state, erasures))
        self.counts = {client: sums.counts for client, sums in fishers.items()}
        known = next(iter(fishers.values())).num_classes
        self.held = evidence.holders(self.request, self.store, self.counts, known)
        self.merged = merge(evidence.parts(fishers), self.settings.merge_rule)
        return self.build(fishers, erasures)

    def fisher(self, state: StateDict) -> dict[str, FisherSums]:
        """The clients' Fisher sums of a model."""
        s = self.settings
        others: dict[str, Any] = {"pooled": self.request.kind != "classes" and s.merge_rule == "mean"}
        if s.reference_share is not None:
            others["reference-share"] = s.reference_share
        return ask_fisher(
            self.federation, state, kind=s.fisher_kind, scope=s.fisher_scope, head=s.head, others=others
        )

    def build(self, fishers: dict[str, FisherSums], erasures: Mapping[str, Any]) -> DampeningUpdate:
        """The merged forget Fisher against the reference in ``fishers``."""
        return build_update(
            self.merged,
            over_rest(fishers),
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(self.state),
            erasures=erasures,
        )

    def calibrate(self, base: DampeningUpdate) -> Candidate | str:
        """The candidate that the clients' scores favour, or why none may be taken."""
        s, states = self.settings, [self.state]
        if s.reference == "shared":
            _, affected = evidence.lineage(
                self.request, self.store, self.counts, self.held, all_affected=s.all_affected
            )
            states += evidence.earlier_models(self.store, affected, self.held, s.calibration_models - 1)
        scores = ask_scores(self.federation, states, base, s, [self.scored_on])[self.scored_on]
        candidates = judge(sum_scores(scores, self.request), s)
        chosen = candidates[0] if s.force else choose(candidates)
        return explain_refusal(candidates, s) if chosen is None else chosen

    def note(self, chosen: Candidate, update: DampeningUpdate) -> None:
        """What a reader of the result should know."""
        self.facts |= {
            "threshold": chosen.threshold,
            "dampening": chosen.dampening,
            "selected": update.selected,
            "digest": update.digest,
            "forget-accuracy-of-clients": chosen.forget_accuracy,
            "retain-drop-of-clients": chosen.retain_drop,
        }
        if update.erasures:
            self.facts["erased"] = ", ".join(update.erasures)


class _Data(_Classes):
    """A request for a client or samples."""

    def calibrate(self, base: DampeningUpdate) -> Candidate | str:
        """The candidate that takes most of the forget set at no more than the accepted cost, or why not."""
        groups = ask_scores(self.federation, [self.state], base, self.settings, ["forget", "held-out"])
        forget, held = (_added([rows[0] for rows in groups[g].values()]) for g in ("forget", "held-out"))
        self.facts["holders"] = len(holders(self.federation))
        self.facts["like-labels-accuracy-of-clients"] = like = like_labels(forget[0], held[0])
        return choose_for_data(forget, held, like, self.settings)


def _added(answers: Sequence[Sequence[ClassScores]]) -> list[ClassScores]:
    return [sum(own[1:], own[0]) for own in zip(*answers, strict=True)]
