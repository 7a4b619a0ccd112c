"""Serving one forget request over a Grid: Fisher, merge, calibration, commit, broadcast, verification.

Nothing is changed, in the store, at the clients or in the current model, before the commit; an error or a
refusal before it leaves everything as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fl_unlearn.apply import stage
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.fisher import FisherSums
from fl_unlearn.flower import records
from fl_unlearn.flower.broadcast import broadcast, deliver_outstanding
from fl_unlearn.flower.calibration import Candidate, choose, explain_refusal, judge
from fl_unlearn.flower.exchange import Exchange, unidentified
from fl_unlearn.flower.panel import Panel
from fl_unlearn.lineage import NodeKind
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    REST,
    ClassScores,
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    UnlearnSettings,
    signature_of,
)

log = logging.getLogger(__name__)


@dataclass
class ForgetResult:
    """What became of a request.

    Attributes:
        request: What was asked.
        settings: How it was served.
        committed: Whether an update was decided and applied.
        message: One sentence for people: what was done, or why nothing was.
        state: The current model afterwards (unchanged when refused).
        update: The update, or None when refused.
        roots: The first models that learned the forget set.
        affected: Every model that inherited from a root, in chronological order.
        applied: The affected models whose checkpoints were changed.
        forgotten_before: Classes forgotten by earlier requests; they count neither as forgotten nor retained.
        holders: Clients that hold forget data, with their number of samples.
        asked: Clients (or ``node-<id>`` where the name is unknown) that were asked.
        failed: Those whose answer was an error or was rejected, with the reason.
        silent: Those that did not answer in time.
        outstanding: Clients that have not confirmed the update; they get it at their next contact.
        receipts: What clients say they applied the update to.
        candidates: What calibration measured.
        before: Scores of the current model before, over the clients' local data: (forget, retain).
        after: The same afterwards, measured in the verification round; None when refused or unanswered.
        wall_seconds: Wall time of the whole request.
        client_seconds: Seconds of computing, summed over clients, as they report them.
        bytes_up: Bytes received from clients.
        bytes_down: Bytes sent to clients.
    """

    request: ForgetRequest
    settings: UnlearnSettings
    committed: bool = False
    message: str = ""
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    update: DampeningUpdate | None = None
    roots: tuple[str, ...] = ()
    affected: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    forgotten_before: tuple[int, ...] = ()
    holders: dict[str, int] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    outstanding: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    before: tuple[ClassScores, ClassScores] | None = None
    after: tuple[ClassScores, ClassScores] | None = None
    wall_seconds: float = 0.0
    client_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


def forget(
    grid: Grid,
    request: ForgetRequest,
    store: RunStore,
    *,
    settings: UnlearnSettings | None = None,
    current: ArrayRecord | None = None,
) -> ForgetResult:
    """Serve one request.

    Args:
        grid: Flower's Grid.
        request: What is to be forgotten.
        store: The run's store; its affected checkpoints are dampened.
        settings: How to serve it.
        current: The current global model; default the newest one in the store. It is not changed: the
            unlearned model is in the result.

    Returns:
        What became of the request. A refusal is a result; only what makes a request senseless is an error.

    Raises:
        RequestError: If a class or client is unknown, nobody holds a class, or nothing would be retained.
        NotEnoughAnswersError: If too few clients answered a phase; nothing was changed.
        StoreError: If the store cannot serve it (foreign model, corrupt checkpoint, full disk); nothing was
            changed.
    """
    return _Session(grid, request, store, settings or UnlearnSettings(), current).run()


class _Session:
    def __init__(
        self,
        grid: Grid,
        request: ForgetRequest,
        store: RunStore,
        settings: UnlearnSettings,
        current: ArrayRecord | None,
    ) -> None:
        self.request, self.store, self.settings = request, store, settings
        before = {c for o in store.operations.all() if not o.request["clients"] for c in o.request["classes"]}
        ignored = sorted(before - set(request.classes))
        exchange = Exchange(grid, settings.timeout)
        self.panel = Panel(exchange, request, settings, store.examples(), ignored)
        state = records.to_state(current) if current is not None else store.latest()[1].state
        store.check_model(signature_of(state))
        self.state = state
        self.result = ForgetResult(request, settings, state=state, forgotten_before=tuple(ignored))

    def run(self) -> ForgetResult:
        started = time.perf_counter()
        try:
            self.panel.wait_for_clients()
            deliver_outstanding(self.panel.exchange, self.store, self.panel.nodes)
            self._serve()
        finally:
            r, x = self.result, self.panel.exchange
            r.asked = tuple(self.panel.label(n) for n in self.panel.nodes)
            r.failed, r.silent = dict(self.panel.failed), tuple(sorted(self.panel.silent))
            r.wall_seconds = time.perf_counter() - started
            r.client_seconds, r.bytes_up, r.bytes_down = x.client_seconds, x.bytes_up, x.bytes_down
        log.info("%s", self.result.message)
        return self.result

    def _serve(self) -> None:
        r = self.result
        fishers = self.panel.ask_fisher(self.state)
        self._check_request(fishers)
        r.roots, r.affected = self._lineage(fishers)
        merged = merge(self._parts(fishers), self.settings.merge_rule)
        base = self._build(merged, fishers)
        chosen = self._calibrate(base)
        if chosen is None:
            return
        r.update = base.variant(chosen.threshold, chosen.dampening)
        updates = dict.fromkeys(r.affected, r.update)
        if self.settings.reference == "per-model":
            updates = self._per_model(merged, r.update)
        staged = stage(self.store, updates, r.update)
        clients = {*self.store.clients().values(), *self.panel.clients()}
        staged.commit(self._record(chosen), sorted(clients))
        r.committed, r.applied = True, tuple(f.name for f in staged.files)
        r.state = apply_update(self.state, r.update)
        r.message = self._describe(chosen, r.update.selected)
        self._tell_and_verify(staged.digest, r.update)

    def _describe(self, chosen: Candidate, selected: int) -> str:
        text = (
            f"committed t = {chosen.threshold:g}, lambda = {chosen.dampening:g}: {selected:,} values of the "
            f"current model and of {len(self.result.applied)} checkpoints were dampened; clients measured "
            f"{chosen.forget_accuracy:.1%} on the forgotten data and {chosen.retain_accuracy:.1%} on the "
            f"retained ({self.panel.scored} of {len(self.panel.nodes)} connected clients)"
        )
        if not chosen.passed:
            text += " (forced: this candidate did not pass calibration)"
        if not chosen.everywhere:
            left = f"{chosen.worst_forget_accuracy:.1%}"
            text += f"; an earlier model still classifies up to {left} of the forgotten data correctly"
        if self.settings.reference == "per-model":
            text += "; earlier models were not scored"
        return text

    def _record(self, chosen: Candidate) -> dict[str, Any]:
        return {
            **self.request.to_json(),
            "threshold": chosen.threshold,
            "dampening": chosen.dampening,
            "settings": self.settings.to_json(),
            "roots": list(self.result.roots),
            "holders": sorted(self.result.holders),
        }

    # ------------------------------------------------------------------ the request
    def _check_request(self, fishers: dict[str, FisherSums]) -> None:
        classes, clients = self.request.classes, self.request.clients
        known = {*fishers, *self.store.clients().values()}
        unknown = [c for c in clients if c not in known]
        if unknown:
            raise RequestError(f"unknown clients {unknown}; known: {', '.join(sorted(known))}")
        absent = [c for c in clients if c not in fishers]
        if absent:
            raise NotEnoughAnswersError(f"the named clients {absent} did not answer; nothing was changed")
        count = next(iter(fishers.values())).num_classes
        for label in classes:
            if label >= count:
                raise RequestError(f"unknown class {label}: the model has the classes 0 to {count - 1}")
        for label in classes:
            if not any(f.counts.get(label) for f in fishers.values()):
                whom = f"of the clients {', '.join(clients)}" if clients else "that answered"
                raise RequestError(f"no client {whom} holds class {label}; check the class and the clients")
        if not any(f.counts.get(REST) for f in fishers.values()):
            raise RequestError(
                "nothing would be retained: the request covers every class that the clients hold. "
                "To forget everything, start again from an untrained model"
            )
        for client, sums in fishers.items():
            if held := sum(sums.counts.get(c, 0) for c in classes):
                self.result.holders[client] = held

    def _lineage(self, answered: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Roots and affected models; a client that could not be asked or identified counts as a holder."""
        r, named = self.result, set(self.request.clients)
        for node, client in self.panel.names.items():
            self.store.identify(unidentified(node), client)
        innocent = set() if self.settings.all_affected else set(answered) - set(r.holders)

        def suspect(client: str) -> bool:
            return client.startswith(records.UNIDENTIFIED) or (
                client in named if named else client not in innocent
            )

        roots = self.store.umig.roots([o for o, c in self.store.clients().items() if suspect(c)])
        if not roots:
            raise RequestError(
                f"the holders {sorted(r.holders)} contributed no update recorded in {self.store.folder}: "
                "there is no model to unlearn. Is this the store of the run that trained the model?"
            )
        names = tuple(n.name for n in roots)
        return names, tuple(n.name for n in self.store.umig.affected(names))

    # ------------------------------------------------------------------ updates
    def _parts(self, fishers: dict[str, FisherSums]) -> list[FisherPart]:
        return [
            FisherPart(client, label, sums.mean([label]), sums.counts[label])
            for client, sums in fishers.items()
            for label in self.request.classes
            if sums.counts.get(label)
        ]

    def _build(self, merged: dict[str, torch.Tensor], fishers: dict[str, FisherSums]) -> DampeningUpdate:
        reference = _retained(fishers.values()).mean([REST])
        return build_update(
            merged,
            reference,
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(self.state),
        )

    def _per_model(
        self, merged: dict[str, torch.Tensor], current: DampeningUpdate
    ) -> dict[str, DampeningUpdate]:
        """The paper's form: the shared forget Fisher against each checkpoint's own reference."""
        updates = dict.fromkeys(self.result.affected, current)
        for name in sorted(set(self.result.affected) & self.store.kept()):
            fishers = self.panel.ask_fisher(self.store.load(name).state)
            updates[name] = self._build(merged, fishers).variant(current.threshold, current.dampening)
        return updates

    def _calibrate(self, base: DampeningUpdate) -> Candidate | None:
        r = self.result
        rows = self.panel.ask_scores(self._snapshots(), base)
        r.before = (rows[0][0].forget, rows[0][0].retain)
        r.candidates = tuple(judge(rows, self.settings))
        chosen = r.candidates[0] if self.settings.force else choose(r.candidates)
        if chosen is None:
            r.message = "refused: " + explain_refusal(r.candidates, self.settings)
        elif not base.variant(chosen.threshold, chosen.dampening).selected:
            r.message = (
                f"refused: the chosen update (t = {chosen.threshold:g}) changes no value, so nothing was "
                f"changed. Clients measure {chosen.forget_accuracy:.1%} on the forgotten data as it is"
            )
            return None
        return chosen

    def _snapshots(self) -> list[dict[str, torch.Tensor]]:
        """The current model, earlier affected global ones evenly spread, and two of the holders' updates."""
        if self.settings.reference == "per-model":
            return [self.state]
        kept, umig = self.store.kept(), self.store.umig
        nodes = [umig.node(n) for n in self.result.affected if n in kept]
        earlier = [n.name for n in nodes if n.kind == NodeKind.AGGREGATE][:-1]
        owners = {o for o, c in self.store.clients().items() if c in self.result.holders}
        updates = [n.name for n in nodes if n.kind == NodeKind.CLIENT_UPDATE and n.owner in owners]
        chosen = _spread(earlier, self.settings.calibration_models - 1) + _spread(updates, 2)
        return [self.state, *(self.store.load(n).state for n in chosen)]

    # ------------------------------------------------------------------ after the commit
    def _tell_and_verify(self, operation: str, update: DampeningUpdate) -> None:
        """Nothing that goes wrong here undoes the commit: what is missing is recorded and made up for."""
        r = self.result
        try:
            nodes = {node: self.panel.label(node) for node in self.panel.nodes}
            r.receipts = tuple(broadcast(self.panel.exchange, self.store, operation, update, nodes))
            rows = self.panel.ask_scores([r.state], None)
            r.after = (rows[0][0].forget, rows[0][0].retain)
        except Exception as e:
            log.exception("the update is committed, but telling the clients or verifying it failed")
            r.message += f". Telling the clients or verifying it failed: {e}"
        r.outstanding = tuple(sorted(self.store.operations.outstanding()))


def _retained(sums: Collection[FisherSums]) -> FisherSums:
    """The clients' retained sums, added: of each answer only the group of what is kept."""
    parts = [
        FisherSums(s.kind, s.scope, s.num_classes, {REST: s.sums[REST]}, {REST: s.counts[REST]}) for s in sums
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _spread(names: list[str], most: int) -> list[str]:
    """At most ``most`` of ``names``, evenly spread from the first to the last."""
    most = min(most, len(names))
    return [names[round(i * (len(names) - 1) / max(1, most - 1))] for i in range(most)]
