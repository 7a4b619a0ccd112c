"""A client's scores of candidate updates on its own data."""

from __future__ import annotations

import time
from itertools import chain

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.batches import sample
from fl_unlearn.flower import data_scores, records
from fl_unlearn.flower.local import Local
from fl_unlearn.flower.own_data import Batches, OwnData
from fl_unlearn.types import ClassScores
from fl_unlearn.verify import score_candidates


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Scores of each model in the message, as it is and under each candidate, on local data."""
    thresholds, dampenings = (records.list_of(record, key) for key in ("thresholds", "dampenings"))
    grid = [(float(t), float(lam)) for t, lam in zip(thresholds, dampenings, strict=True)]
    base = records.read_update(content) if grid else None
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
        return records.write_scores(local.client, rows[0], seconds)
    forget, held = rows
    return data_scores.write(local.client, forget, held, seconds)


def _gathered(own: OwnData, record: ConfigRecord) -> list[Batches]:
    """What to score on: held-out and training samples; or what is named, and held-out samples.

    Gathered once: loaders may shuffle or be exhausted, and all models must be scored on the same data.
    """
    most = records.ints(record, "samples")[0]
    if own.asks:
        return [sample(own.forget(), (), most), sample(own.held(), (), most)]
    held = own.held_out if own.held_out is not None else ()
    return [sample(chain(held, own.kept()), records.ints(record, "classes"), most)]
