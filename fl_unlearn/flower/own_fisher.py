"""A client's Fisher sums of one model: what a request names apart, everything else pooled."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher.clipped import clipped_fisher
from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local, check_classes
from fl_unlearn.flower.own_data import groups, split
from fl_unlearn.flower.own_privacy import agreed, noisy, write_sum
from fl_unlearn.pooled import flatten
from fl_unlearn.privacy import Privacy
from fl_unlearn.types import REST


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Fisher sums of the model in the message over this client's training data, or from its ledger."""
    privacy = agreed(local, record)
    model, names = local.load(records.read_model(content))
    classes, ignored = groups(local.client, record)
    check_classes(model, classes, str(record["head"]) or None)
    started = time.perf_counter()
    sums, held = _sums(local, record, model, classes, ignored, privacy)
    for group, tensors in sums.sums.items():
        sums.sums[group] = {names[n]: t for n, t in tensors.items()}
    seconds = time.perf_counter() - started
    if privacy.sums_only:
        return _summand(local, record, content, sums, privacy, seconds)
    return records.write_fisher(local.client, sums, seconds, ledger=held)


def _sums(
    local: Local,
    record: ConfigRecord,
    model: nn.Module,
    classes: list[int],
    ignored: list[int],
    privacy: Privacy,
) -> tuple[FisherSums, bool]:
    """The sums, and whether they are the ledger's."""
    asked: dict[str, Any] = {"kind": str(record["kind"]), "scope": str(record["scope"])}
    asked |= {"head": str(record["head"]) or None, "device": local.device}
    if privacy.noise:
        known = fisher_diagonal(model, [], keep_classes=classes, **asked).num_classes
        apart, loader = [*classes, *ignored], split(local.data())[0]
        sums = clipped_fisher(
            model, loader, clip=privacy.clip, keep_classes=apart, num_classes=known, **asked
        )
        return sums.without(ignored), False
    asked["reference_share"] = record.get("reference-share")
    if ledger := local.ledger():
        asked["keep"] = record.get("passing") is not True
        return ledger.answer(model, lambda: split(local.data())[0], classes=classes, ignored=ignored, **asked)
    sums = fisher_diagonal(model, split(local.data())[0], keep_classes=[*classes, *ignored], **asked)
    return sums.without(ignored), False


def _summand(
    local: Local,
    record: ConfigRecord,
    content: RecordDict,
    sums: FisherSums,
    privacy: Privacy,
    seconds: float,
) -> RecordDict:
    """One term of the sum over clients; one that is not named adds nothing to what is to be forgotten."""
    wanted, names = [*records.ints(record, "classes"), REST], sorted(sums.names)
    zeros = {n: t * 0 for n, t in sums.sums[REST].items()}
    for label in wanted:
        sums.sums.setdefault(label, zeros)
    values = flatten(sums, wanted, names)
    if privacy.noise:
        deviations = np.full(values.shape, privacy.noise * privacy.clip)
        deviations[:: len(values) // len(wanted)] = privacy.noise  # the counts
        values = noisy(values, deviations)
    said = {"names": names, "num-classes": sums.num_classes, "seconds": seconds}
    return write_sum(local, content, values, privacy, **said)
