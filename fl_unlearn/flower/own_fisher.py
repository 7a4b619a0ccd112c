"""A client's Fisher sums of one model: what a request names apart, everything else pooled."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.fisher import fisher_diagonal
from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local, check_classes
from fl_unlearn.flower.own_data import groups, split


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Fisher sums of the model in the message over this client's training data, or from its ledger."""
    model, names = local.load(records.read_model(content))
    classes, ignored = groups(local.client, record)
    head, share = str(record["head"]) or None, record.get("reference-share")
    check_classes(model, classes, head)

    asked: dict[str, Any] = {"kind": str(record["kind"]), "scope": str(record["scope"]), "head": head}
    asked |= {"device": local.device, "reference_share": share}
    ledger, held = local.ledger(), False
    if ledger is None:
        loader = split(local.data())[0]
        started = time.perf_counter()
        sums = fisher_diagonal(model, loader, keep_classes=[*classes, *ignored], **asked)
        sums = sums.without(ignored)
    else:
        started, asked["keep"] = time.perf_counter(), record.get("passing") is not True
        sums, held = ledger.answer(
            model, lambda: split(local.data())[0], classes=classes, ignored=ignored, **asked
        )
    for group, tensors in sums.sums.items():
        sums.sums[group] = {names[n]: t for n, t in tensors.items()}
    return records.write_fisher(local.client, sums, time.perf_counter() - started, ledger=held)
