"""A client's scores of candidate updates on its own data."""

from __future__ import annotations

import math
import time
from itertools import chain

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.batches import sample
from fl_unlearn.flower import data_scores, records
from fl_unlearn.flower.local import Local
from fl_unlearn.flower.own_data import Batches, OwnData, groups
from fl_unlearn.flower.own_privacy import agreed, counts_of, noisy, pool, write_sum
from fl_unlearn.privacy import Privacy
from fl_unlearn.types import ClassScores, RequestError
from fl_unlearn.verify import score_candidates


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Scores of each model in the message, as it is and under each candidate, on local data."""
    thresholds, dampenings = (records.list_of(record, key) for key in ("thresholds", "dampenings"))
    grid = [(float(t), float(lam)) for t, lam in zip(thresholds, dampenings, strict=True)]
    base = records.read_update(content) if grid else None
    privacy = agreed(local, record)
    parts = _gathered(local.own(record), record)
    seconds, rows = 0.0, [list[list[ClassScores]]() for _ in parts]
    for i in range(records.ints(record, "models")[0]):
        model, names = local.load(records.read_model(content, f"{records.MODEL}.{i}"))
        own = base.renamed({theirs: name for name, theirs in names.items()}) if base else None
        candidates = [None, *(own.variant(t, lam) for t, lam in grid)] if own else [None]
        head = str(record["head"]) or None
        started = time.perf_counter()
        for batches, scored in zip(parts, rows, strict=True):
            scored.append(score_candidates(model, batches, candidates, device=local.device, head=head))
        seconds += time.perf_counter() - started
    if len(rows) == 1:
        return _of_classes(local, record, content, rows[0], privacy, seconds)
    if privacy.two_groups:
        raise RequestError("noise, masks and pooled scores are for requests that name classes")
    forget, held = rows
    return data_scores.write(local.client, forget, held, seconds)


def _of_classes(
    local: Local,
    record: ConfigRecord,
    content: RecordDict,
    rows: list[list[ClassScores]],
    privacy: Privacy,
    seconds: float,
) -> RecordDict:
    """By class, or of two groups, and these with noise or under masks."""
    if not privacy.two_groups:
        return records.write_scores(local.client, rows, seconds)
    forget, ignored = groups(local.client, record)
    first = records.ints(record, "classes")[0]
    pooled = pool(rows, forget, first, ignored)
    if not privacy.score_noise and not privacy.masked:
        return records.write_scores(local.client, pooled, seconds)
    values = counts_of(pooled, first)
    if privacy.score_noise:  # one sample changes a total and one count of each model and candidate by one
        values = noisy(values, privacy.score_noise * math.sqrt(len(values) / 2))
    return write_sum(local, content, values, privacy, seconds=seconds)


def _gathered(own: OwnData, record: ConfigRecord) -> list[Batches]:
    """What to score on: held-out and training samples; or what is named, and held-out samples.

    Gathered once: loaders may shuffle or be exhausted, and all models must be scored on the same data.
    """
    most = records.ints(record, "samples")[0]
    if own.asks:
        return [sample(own.forget(), (), most), sample(own.held(), (), most)]
    held = own.held_out if own.held_out is not None else ()
    return [sample(chain(held, own.kept()), records.ints(record, "classes"), most)]
