"""What became of a forget request, for the caller and as JSON for the store's log."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fl_unlearn.calibration import Candidate
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.document_status import DocumentStatus, of_request
from fl_unlearn.metrics.contract import Measured
from fl_unlearn.request_log import RequestRow
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, CorruptCheckpointError, ForgetRequest, UnlearnSettings

log = logging.getLogger(__name__)

_PLAIN = (
    "committed",
    "message",
    "roots",
    "applied",
    "forgotten_before",
    "holders",
    "asked",
    "failed",
    "silent",
    "outstanding",
    "wall_seconds",
    "client_seconds",
    "bytes_up",
    "bytes_down",
)


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
        before: Scores of the current model before, over the clients' local data: (forget, retain); of a
            request for clients or samples the second is of held-out samples.
        after: The same afterwards, measured in the verification round; None when refused or unanswered.
        like_labels: Of a request for clients or samples, the accuracy of the current model before on held-out
            samples with the labels, in the shares, of the forget set: about what it knows of such data
            without training on it. None where that was not measured.
        measured: What the clients measured besides, as `UnlearnSettings.measures` asks: the key of a metric's
            column to ``{"before": ..., "after": ...}``, of the current model.
        privacy: What the noise in the clients' answers bounds, as `privacy.cost` tells it; empty where the
            settings ask for none.
        contradictions: Where the verification after the commit contradicts what it was decided by, in words.
        wall_seconds: Wall time of the whole request.
        client_seconds: Seconds of computing, summed over clients, as they report them.
        bytes_up: Bytes received from clients.
        bytes_down: Bytes sent to clients.
        document: The document that asked for it, and what became of it; None when the program did.
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
    like_labels: float | None = None
    measured: dict[str, dict[str, Measured]] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    contradictions: tuple[str, ...] = ()
    wall_seconds: float = 0.0
    client_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    document: DocumentStatus | None = None


def describe(result: ForgetResult, chosen: Candidate, scored: tuple[int, int]) -> str:
    """What was committed, in a few words.

    Args:
        result: The result, with its update and the models that got it.
        chosen: The candidate that the update is.
        scored: How many clients scored the candidates, of how many.
    """
    assert result.update is not None
    clients, connected = scored
    layers = ", ".join(map(repr, result.update.erasures))
    text = (
        f"committed t = {chosen.threshold:g}, lambda = {chosen.dampening:g}: "
        + (f"the classes were erased in {layers}, and " if layers else "")
        + f"{result.update.selected:,} values of the current model and of {len(result.applied)} checkpoints "
        f"were dampened; clients measured {chosen.forget_accuracy:.1%} on the forgotten data"
        + (" and " if result.like_labels is None else _like(result, result.like_labels))
        + f"{chosen.retain_accuracy:.1%} on the {'retained' if result.like_labels is None else 'held-out'} "
        f"({clients} of {connected} connected clients)"
    )
    if result.settings.erases and not layers:
        text += "; in hidden layers there was nothing to erase"
    if not chosen.passed:
        text += " (forced: this candidate did not pass calibration)"
    if chosen.disputed:
        whom = f" by {', '.join(chosen.against)}: without them" if chosen.against else ": with weights capped"
        text += (
            f" (disputed{whom}, and by the vote, it passed, with "
            + ("" if chosen.trimmed_forget is None else f"{chosen.trimmed_forget:.1%} left, ")
            + f"{100 * (chosen.trimmed_drop or 0):.1f} points lost)"
        )
    if result.like_labels is not None:
        return text + "; earlier models were not scored"
    if not chosen.everywhere:
        left = f"{chosen.worst_forget_accuracy:.1%}"
        text += f"; an earlier model still classifies up to {left} of the forgotten data correctly"
    if result.settings.reference == "per-model":
        text += "; earlier models were not scored"
    return text


def _like(result: ForgetResult, like: float) -> str:
    """What the accuracy on a client's data or samples is to be compared with: it is not to become 0."""
    known = result.before[0].accuracy() if result.before else None
    was = "" if known is None else f"{known:.1%} before; "
    return f" ({was}{like:.1%} on held-out samples of like labels, which nobody trained on) and "


def to_facts(result: ForgetResult) -> dict[str, Any]:
    """What a result holds, finished or not, as JSON; the store has the rest."""
    facts = {name: getattr(result, name) for name in _PLAIN}
    facts["update"] = result.update.digest if result.update else None
    facts["candidates"] = [c.to_json() for c in result.candidates]
    for name in ("before", "after"):
        scores = getattr(result, name)
        facts[name] = [asdict(s) for s in scores] if scores else None
    facts["measured"], facts["privacy"] = measured_facts(result), result.privacy
    facts["contradictions"] = list(result.contradictions)
    facts["like_labels"] = result.like_labels
    return facts


def measured_facts(result: ForgetResult) -> dict[str, dict[str, dict[str, Any]]]:
    """What was measured besides, as JSON."""
    return {k: {when: asdict(m) for when, m in both.items()} for k, both in result.measured.items()}


def from_facts(store: RunStore, row: RequestRow, settings: UnlearnSettings) -> ForgetResult:
    """The result that `to_facts` was given, from the facts of a request and from the store.

    ``state`` is left empty: it is the model of then, which may have been trained on since.

    Args:
        store: The run's store.
        row: The request.
        settings: How it is, or was, served.
    """
    facts = row.facts
    result = ForgetResult(row.request, settings)
    for name in _PLAIN:
        value = facts[name]
        setattr(result, name, tuple(value) if isinstance(value, list) else value)
    result.privacy = facts.get("privacy", {})  # older versions knew none
    result.candidates = tuple(Candidate(**c) for c in facts["candidates"])
    result.candidates = tuple(replace(c, against=tuple(c.against)) for c in result.candidates)
    result.before, result.after = _scores(facts["before"]), _scores(facts["after"])
    measured = facts.get("measured", {})  # older versions did not measure
    result.measured = {k: {when: Measured(**m) for when, m in both.items()} for k, both in measured.items()}
    result.contradictions = tuple(facts.get("contradictions", ()))
    result.like_labels = facts.get("like_labels")
    result.receipts = store.runs.requests.receipts(row.id)
    result.document = of_request(store, row)
    if facts["update"]:
        try:
            result.update = store.update(facts["update"])
        except CorruptCheckpointError as e:
            log.warning("the result of request %d is told without its update: %s", row.id, e)
    if result.roots:
        affected = store.umig.affected(result.roots)
        result.affected = tuple(n.name for n in affected if n.id <= facts["models"])
    return result


def _scores(plain: list[dict[str, dict[str, Any]]] | None) -> tuple[ClassScores, ClassScores] | None:
    if plain is None:
        return None
    forget, retain = (
        ClassScores(**{name: {int(c): v for c, v in by_class.items()} for name, by_class in scores.items()})
        for scores in plain
    )
    return forget, retain
