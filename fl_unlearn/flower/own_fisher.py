"""A client's Fisher sums of one model: what a request names apart, everything else pooled."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher.clipped import clipped_fisher
from fl_unlearn.fisher.named import fisher_of_named
from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local, check_classes
from fl_unlearn.flower.own_data import groups, split
from fl_unlearn.flower.own_privacy import agreed, noisy, write_sum
from fl_unlearn.flower.targets import LEFT_OUT, NAMED, Share
from fl_unlearn.pooled import flatten
from fl_unlearn.privacy import Privacy
from fl_unlearn.types import REST, RequestError


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Fisher sums of the model in the message over this client's training data, or from its ledger."""
    privacy = agreed(local, record)
    model, names = local.load(records.read_model(content))
    classes, ignored = groups(local.client, record)
    head, share = str(record["head"]) or None, record.get("reference-share")
    check_classes(model, classes, head)

    asked: dict[str, Any] = {"kind": str(record["kind"]), "scope": str(record["scope"]), "head": head}
    asked |= {"device": local.device, "reference_share": share}
    started, held = time.perf_counter(), False
    if Share.from_text(record.get(NAMED, "{}")):
        if privacy.sums_only:
            raise RequestError("noise and masks are for requests that name classes; serve this one without")
        own = local.own(record)
        started = time.perf_counter()
        sums = fisher_of_named(model, own.forget(), own.rest(), **asked)
    elif privacy.noise:
        del asked["reference_share"]
        sums = _clipped(local, record, model, classes, ignored, privacy, asked)
    else:
        sums, held, started = _of_classes(local, record, model, classes, ignored, asked)
    for group, tensors in sums.sums.items():
        sums.sums[group] = {names[n]: t for n, t in tensors.items()}
    seconds = time.perf_counter() - started
    if privacy.sums_only:
        return _summand(local, record, content, sums, privacy, seconds)
    return records.write_fisher(local.client, sums, seconds, ledger=held)


def _clipped(
    local: Local,
    record: ConfigRecord,
    model: nn.Module,
    classes: list[int],
    ignored: list[int],
    privacy: Privacy,
    asked: dict[str, Any],
) -> FisherSums:
    """Sums by class of samples that are clipped each, as noise needs them."""
    known = fisher_diagonal(model, [], keep_classes=classes, **asked).num_classes
    apart, loader = [*classes, *ignored], local.own(record).kept()
    sums = clipped_fisher(model, loader, clip=privacy.clip, keep_classes=apart, num_classes=known, **asked)
    return sums.without(ignored)


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
