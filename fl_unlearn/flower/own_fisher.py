"""A client's Fisher sums of one model: what a request names apart, everything else pooled."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher.named import fisher_of_named
from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local, check_classes
from fl_unlearn.flower.own_data import groups, split
from fl_unlearn.flower.targets import LEFT_OUT, NAMED, Share


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Fisher sums of the model in the message over this client's training data, or from its ledger."""
    model, names = local.load(records.read_model(content))
    classes, ignored = groups(local.client, record)
    head, share = str(record["head"]) or None, record.get("reference-share")
    check_classes(model, classes, head)

    asked: dict[str, Any] = {"kind": str(record["kind"]), "scope": str(record["scope"]), "head": head}
    asked |= {"device": local.device, "reference_share": share}
    started, held = time.perf_counter(), False
    if Share.from_text(record.get(NAMED, "{}")):
        own = local.own(record)
        started = time.perf_counter()
        sums = fisher_of_named(model, own.forget(), own.rest(), **asked)
    else:
        sums, held, started = _of_classes(local, record, model, classes, ignored, asked)
    for group, tensors in sums.sums.items():
        sums.sums[group] = {names[n]: t for n, t in tensors.items()}
    return records.write_fisher(local.client, sums, time.perf_counter() - started, ledger=held)


def _of_classes(
    local: Local,
    record: ConfigRecord,
    model: nn.Module,
    classes: list[int],
    ignored: list[int],
    asked: dict[str, Any],
) -> tuple[FisherSums, bool, float]:
    """Sums by class, whether the ledger gave them, and when computing began."""
    # A ledger holds sums of classes: nothing of single samples that are to be left out.
    ledger = None if LEFT_OUT in record else local.ledger()
    if ledger is None:
        loader = local.own(record).kept()
        started = time.perf_counter()
        sums = fisher_diagonal(model, loader, keep_classes=[*classes, *ignored], **asked)
        return sums.without(ignored), False, started
    started = time.perf_counter()
    keep = record.get("passing") is not True and NAMED not in record
    sums, held = ledger.answer(
        model, lambda: split(local.data())[0], classes=classes, ignored=ignored, keep=keep, **asked
    )
    return sums, held, started
