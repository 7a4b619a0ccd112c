"""A client's scores of candidate updates on its own data."""

from __future__ import annotations

import time
from itertools import chain

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.batches import sample
from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local
from fl_unlearn.flower.own_data import split
from fl_unlearn.verify import score_candidates


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Scores of each model in the message, as it is and under each candidate, on local data."""
    thresholds, dampenings = (records.list_of(record, key) for key in ("thresholds", "dampenings"))
    grid = [(float(t), float(lam)) for t, lam in zip(thresholds, dampenings, strict=True)]
    base = records.read_update(content) if grid else None
    # Gathered once: loaders may shuffle or be exhausted, and all models must be scored on the same data.
    parts = split(local.data())
    batches = sample(
        chain.from_iterable(reversed(parts)),
        records.ints(record, "classes"),
        records.ints(record, "samples")[0],
    )
    seconds, rows = 0.0, []
    for i in range(records.ints(record, "models")[0]):
        model, names = local.load(records.read_model(content, f"{records.MODEL}.{i}"))
        own = base.renamed({theirs: name for name, theirs in names.items()}) if base else None
        candidates = [None, *(own.variant(t, lam) for t, lam in grid)] if own else [None]
        head = str(record["head"]) or None
        started = time.perf_counter()
        rows.append(score_candidates(model, batches, candidates, device=local.device, head=head))
        seconds += time.perf_counter() - started
    return records.write_scores(local.client, rows, seconds)
