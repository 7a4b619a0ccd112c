"""How far a request has come, as the store knows it: taken up where its server died, noted phase by phase."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fl_unlearn import request_log
from fl_unlearn.calibration import Candidate
from fl_unlearn.calibration_data import settings_for
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import records
from fl_unlearn.flower.result import ForgetResult, from_facts, measured_facts, to_facts
from fl_unlearn.metrics import find
from fl_unlearn.operations import Operation
from fl_unlearn.privacy import check_accounting
from fl_unlearn.request_log import RequestRow
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, RequestError, UnlearnSettings, UpdateError

log = logging.getLogger(__name__)

BASE = "base.safetensors"
"""What the Fisher phase leaves: the update of which all candidates are variants."""
RELEASED = "released"


def take_up(
    store: RunStore,
    request: ForgetRequest,
    settings: UnlearnSettings,
    *,
    position: int | None = None,
    after_round: int | None = None,
    document: str | None = None,
) -> RequestRow:
    """The row of the same request if it was interrupted, or a new one.

    With other settings than then it begins anew, unless it was decided already. ``document`` is the ticket of
    the document that asks for it, for the audit log.

    Raises:
        RequestError: If no request can be served on such models.
        SettingsError: If the settings name a metric that there is not, or do not fit the kind of request.
    """
    settings = settings_for(request, settings)
    find(settings.measures)
    check_accounting(settings.privacy)
    if request.kind != "classes" and (settings.privacy.sums_only or settings.privacy.two_groups):
        raise RequestError(
            "noise, masks and pooled scores are for requests that name classes; serve this one without"
        )
    row = store.runs.requests.find(request, position)
    if row is not None and row.phase in request_log.UNFINISHED:
        if decision_of(store, row) or _alike(row.settings, settings):
            log.warning("request %d was interrupted after the phase %r; it goes on", row.id, row.phase)
            return row
        fail(store, row, "begun anew with other settings")
    with store.audit.transaction():
        row = store.runs.requests.open(request, settings, position=position, after_round=after_round)
        said = {**request.to_json(), "settings": settings.to_json()}
        said |= {} if document is None else {"document": document}
        store.audit.append("request", {"request": row.id, **said})
    if why := store.undampenable:
        fail(store, row, f"refused: {why}")
        raise RequestError(f"refused: {why}")
    return row


def fail(store: RunStore, row: RequestRow, why: str) -> None:
    """Give a request up that changed nothing."""
    with store.audit.transaction():
        store.runs.requests.give_up(row.id)
        store.audit.append("failed", {"request": row.id, "message": why})


def decision_of(store: RunStore, row: RequestRow) -> Operation | None:
    """The operation that a request was decided with."""
    return next((o for o in store.operations.all() if o.request.get("request") == row.id), None)


def released(row: RequestRow) -> list[float]:
    """Noise multipliers of all that clients were asked for because of a request, whatever became of it."""
    older = (row.facts.get("privacy") or {}).get("multipliers", [])
    return list(row.facts.get(RELEASED, older))


def _alike(then: dict[str, Any], now: UnlearnSettings) -> bool:
    """Whether two settings serve a request alike; how many clients to wait for depends on the moment.

    Settings that an older version did not know were what the defaults are.
    """
    plain, older = (json.loads(json.dumps(s.to_json())) for s in (now, UnlearnSettings()))
    known = {n: {**v, **then.get(n, {})} if isinstance(v, dict) else then.get(n, v) for n, v in older.items()}
    return {**then, **known, "min_clients": 0} == {**plain, "min_clients": 0}


class Progress:
    """One request's way through the phases.

    Args:
        store: The run's store.
        row: The request.
        settings: How it is served.
        state: The current global model.

    Attributes:
        result: What has become of it so far.
        decision: The operation that it was decided with, before a server died.
        base: What the Fisher phase left; None while it has to be asked for.
        chosen: Threshold and dampening chosen by calibration; None before.
        scored: How many clients scored the candidates, of how many.
        scored_update: Digest of the chosen update as they scored it; None before.
        expected: Digest of the current model with that update, about which they said it; None before.
        promised: What each of them said of it, as `Votes.said` gives it.
        released: Noise multipliers of all that clients were asked for, what came to nothing included.
        behind: Whether the current model is the one from before that decision, and lacks its update.
    """

    def __init__(
        self,
        store: RunStore,
        row: RequestRow,
        settings: UnlearnSettings,
        state: dict[str, torch.Tensor],
    ) -> None:
        self.store, self.row = store, row
        self.models, self.model = len(store.umig), digest_of(state)
        self.decision = decision_of(store, row)
        self.base = None if self.decision else self._kept_base()
        self.result = ForgetResult(row.request, settings)
        self.chosen: tuple[float, float] | None = None
        self.scored, self.behind = (0, 0), False
        self.scored_update: str | None = None
        self.expected: str | None = None
        self.promised: Mapping[str, Sequence[Sequence[float]]] = {}
        self.released = released(row)
        if self.decision or self.base:
            self.result = from_facts(store, row, settings)
            self.behind = self.decision is not None and row.facts["model"] == self.model
            self.model = row.facts["model"]
            self.models, self.scored = row.facts["models"], tuple(row.facts["scored"])
            self.chosen = tuple(row.facts["chosen"]) if row.facts["chosen"] else None
            self.scored_update = row.facts.get("scored_update")
            self.expected, self.promised = row.facts.get("expected"), row.facts.get("promised", {})

    @property
    def resumed(self) -> bool:
        """Whether phases were completed before."""
        return self.decision is not None or self.base is not None

    def candidate(self) -> Candidate | None:
        """The candidate chosen before a server died."""
        return next((c for c in self.result.candidates if (c.threshold, c.dampening) == self.chosen), None)

    def note(self, phase: str) -> None:
        """Note that a phase is completed.

        Raises:
            StoreError: If the store cannot be written.
        """
        facts = {**to_facts(self.result), "models": self.models, "model": self.model}
        facts |= {"chosen": self.chosen, "scored": self.scored}
        facts |= {"scored_update": self.scored_update, "promised": self.promised}
        facts |= {"expected": self.expected, RELEASED: self.released}
        with self.store.audit.transaction():
            self.store.runs.requests.note(self.row.id, phase, facts)
            if phase == request_log.REFUSED:
                self.store.audit.append("refused", {"request": self.row.id, "message": self.result.message})
            if phase == request_log.DONE and self.result.contradictions:
                said = {"request": self.row.id, "what": list(self.result.contradictions)}
                self.store.audit.append("contradicted", said)
            if phase == request_log.DONE:
                self.store.audit.append("verified", {"request": self.row.id, **self._measured()})

    def release(self, multipliers: Sequence[float]) -> None:
        """Note what clients are about to be asked for: a request that fails has cost them no less."""
        self.released = list(multipliers)
        self.store.runs.requests.add_fact(self.row.id, RELEASED, self.released)

    def _measured(self) -> dict[str, Any]:
        """What the clients measured on the current model: shares and numbers of samples; None: nothing."""
        out: dict[str, Any] = {"message": self.result.message, "affected": list(self.result.affected)}
        for when, scores in (("before", self.result.before), ("after", self.result.after)):
            for what, part in zip(("forgotten", "retained"), scores or (None, None), strict=True):
                found = None
                if part is not None:
                    found = {"accuracy": part.accuracy(), "samples": sum(part.total.values())}
                out[f"{what}_{when}"] = found
        return out | ({"measures": measured_facts(self.result)} if self.result.measured else {})

    def keep_base(self, base: DampeningUpdate) -> None:
        """Keep what the Fisher phase leaves, until the request is over."""
        self.base = base
        self.store.runs.requests.keep_file(self.row.id, BASE, base.to_bytes())

    def _kept_base(self) -> DampeningUpdate | None:
        """What the Fisher phase left, if it was this model's."""
        facts = self.row.facts
        if (facts.get("models"), facts.get("model")) != (self.models, self.model):
            return None
        data = self.store.runs.requests.read_file(self.row.id, BASE)
        try:
            return DampeningUpdate.from_bytes(data) if data is not None else None
        except UpdateError as e:
            log.warning("what request %d needed to go on was damaged, it begins anew: %s", self.row.id, e)
            return None


def digest_of(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and values."""
    sha = hashlib.sha256()
    for name, array in records.to_arrays(state).items():
        sha.update(name.encode() + b"\0" + array.data)
    return sha.hexdigest()
