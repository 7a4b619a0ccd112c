"""Asking the clients for their Fisher sums of one model."""

from __future__ import annotations

import logging

import torch
from flwr.app import RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.panel import Panel
from fl_unlearn.gather import FisherGather
from fl_unlearn.types import REST, signature_of

log = logging.getLogger(__name__)


def ask_fisher(panel: Panel, state: dict[str, torch.Tensor], *, passing: bool = False) -> FisherGather:
    """The clients' Fisher sums of one model, merged: the requested classes apart, the rest pooled.

    Args:
        panel: The clients.
        state: The model.
        passing: Whether it is one of many, which the clients' ledgers need not keep sums of.

    Raises:
        RequestError: If the clients do not know a class.
        NotEnoughAnswersError: If too few answers are usable.
    """
    s, request = panel.settings, panel.request
    asked = records.head(
        kind=s.fisher_kind,
        scope=s.fisher_scope,
        head=s.head or "",
        classes=list(request.classes),
        ignored=list(panel.ignored),
        clients=list(request.clients),
        passing=passing,
    )
    if s.reference_share is not None:
        asked["reference-share"] = s.reference_share
    content = RecordDict({records.HEAD: asked, records.MODEL: records.to_arrays(state)})
    model, gathered, kept = signature_of(state), FisherGather(s.merge_rule), 0

    def take(client: str, reply: RecordDict) -> None:
        nonlocal kept
        named = not request.clients or client in request.clients
        groups = (*request.classes, REST) if named else (REST,)
        sums = records.read_fisher(
            reply, kind=s.fisher_kind, scope=s.fisher_scope, groups=groups, model=model
        )
        panel.plausible(client, sum(sums.counts.values()))
        gathered.add(client, sums)
        kept += records.from_ledger(reply)

    panel.gather("Fisher", records.FISHER, content, take)
    if kept:
        log.info("%d of %d clients answered from their ledgers", kept, len(gathered.counts))
    return gathered
