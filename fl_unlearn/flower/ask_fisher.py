"""Asking the clients for their Fisher sums of one model."""

from __future__ import annotations

import json
import logging
import math

import torch
from flwr.app import RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.ask_sum import Said, ask_sum
from fl_unlearn.flower.own_privacy import to_text
from fl_unlearn.flower.panel import Panel
from fl_unlearn.forget_set import NAMED
from fl_unlearn.gather import FisherGather
from fl_unlearn.pooled import TOGETHER, PooledFisher, length
from fl_unlearn.types import REST, AnswerError, RequestError, Signature, signature_of

log = logging.getLogger(__name__)

_About = tuple[tuple[str, ...], int]
"""What an answer is about: parameters, and the number of classes."""


def ask_fisher(
    panel: Panel, state: dict[str, torch.Tensor], *, passing: bool = False
) -> FisherGather | PooledFisher:
    """The clients' Fisher sums of one model, merged: what the request names apart, the rest pooled.

    Args:
        panel: The clients.
        state: The model.
        passing: Whether it is one of many, which the clients' ledgers need not keep sums of.

    Raises:
        RequestError: If the clients do not know a class, or a named client a sample.
        NotEnoughAnswersError: If too few answers are usable.
    """
    s, request = panel.settings, panel.request
    content = _question(panel, state, passing)
    if s.privacy.sums_only:
        return _ask_sum(panel, content, signature_of(state))
    apart = request.classes if request.kind == "classes" else (NAMED,)
    model, kept = signature_of(state), 0
    gathers = dict[_About, FisherGather]()

    def take(client: str, reply: RecordDict) -> None:
        nonlocal kept
        named = not request.named or client in request.named
        groups = (*apart, REST) if named else (REST,)
        sums = records.read_fisher(
            reply, kind=s.fisher_kind, scope=s.fisher_scope, groups=groups, model=model
        )
        panel.plausible(client, sum(sums.counts.values()))
        about = (tuple(sums.names), sums.num_classes)
        if about not in gathers:
            # The group of what is named otherwise is no class, and the bounds of a head are about classes.
            head = s.fisher_scope.strip() == "head" and request.kind == "classes"
            gathers[about] = FisherGather(s.merge_rule, s.defence, panel.examples, head=head)
        gathers[about].add(client, sums)
        kept += records.from_ledger(reply)

    panel.gather("Fisher", records.FISHER, content, take)
    gathered = _of_most(panel, gathers)
    if request.kind != "classes":
        panel.require(request.named, gathered.counts)
    if kept:
        log.info("%d of %d clients answered from their ledgers", kept, len(gathered.counts))
    return gathered


def _question(panel: Panel, state: dict[str, torch.Tensor], passing: bool) -> RecordDict:
    s, request = panel.settings, panel.request
    asked = records.head(
        kind=s.fisher_kind,
        scope=s.fisher_scope,
        head=s.head or "",
        classes=list(request.classes),
        ignored=list(panel.ignored),
        clients=list(request.clients),
        passing=passing,
        privacy=to_text(s.privacy),
    )
    if s.reference_share is not None:
        asked["reference-share"] = s.reference_share
    return RecordDict({records.HEAD: asked, records.MODEL: records.to_arrays(state)})


def _of_most(panel: Panel, gathers: dict[_About, FisherGather]) -> FisherGather:
    """What most clients say counts, not what came first: one client must not silence all others."""
    _, gathered = max(gathers.items(), key=lambda item: (len(item[1].counts), item[0]))
    others = [c for g in gathers.values() if g is not gathered for c in g.counts]
    if others:
        odd = dict.fromkeys(others, "other parameters or classes than most clients'")
        panel.reject("Fisher", odd, len(gathered.counts))
    if wrong := gathered.settle():
        panel.reject("Fisher", wrong, len(gathered.counts))
    if gathered.scaled:
        log.warning("Fishers scaled down to what is plausible: of clients %s", sorted(gathered.scaled)[:10])
    return gathered


def _ask_sum(panel: Panel, content: RecordDict, model: Signature) -> PooledFisher:
    """The clients' sums, added: noisy, or under masks, they mean something together only."""
    s, groups = panel.settings, [*panel.request.classes, REST]

    def read(reply: RecordDict) -> tuple[int, Said]:
        record = records.read_head(reply)
        names, classes = records.list_of(record, "names"), record.get("num-classes")
        if not names or names != sorted({n for n in names if isinstance(n, str) and n in model}):
            raise AnswerError(f"the Fisher must name some of the model's tensors, in order, got {names[:4]}")
        if not isinstance(classes, int) or not 0 < classes <= records.MAX_CLASSES:
            raise AnswerError(f"the number of classes is {classes!r}")
        said = {"names": json.dumps(names), "classes": str(classes)}
        return length(groups, {n: model[n].shape for n in names}), said

    if s.privacy.noise:
        panel.release(s.privacy.noise, s.privacy.noise)  # the sums, and the counts
    summed = ask_sum(panel, "Fisher", records.FISHER, content, read)
    panel.answered = summed.clients
    deviation = s.privacy.noise * math.sqrt(len(summed.clients))
    pooled = PooledFisher(
        summed.total,
        groups,
        {n: model[n].shape for n in json.loads(summed.said["names"])},
        int(summed.said["classes"]),
        s.merge_rule,
        deviation=s.privacy.clip * deviation,
        count_deviation=deviation,
    )
    counts = pooled.counts[TOGETHER]
    if s.privacy.noise and not any(counts[c] for c in panel.request.classes):
        raise RequestError(
            f"the counts of the classes {list(panel.request.classes)} are lost in their noise, of deviation "
            f"{deviation:.1f}: nobody has these classes, or it takes less noise, or more data"
        )
    return pooled
