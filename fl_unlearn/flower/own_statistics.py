"""A client's sums of one hidden layer's outputs, for the erasure of classes there."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.batches import take_rows, to_device, unpack
from fl_unlearn.erase_layers import Hidden, Statistics, find_layers
from fl_unlearn.flower import records, statistics
from fl_unlearn.flower.local import Local, check_classes
from fl_unlearn.flower.own_data import groups
from fl_unlearn.flower.own_privacy import uncovered
from fl_unlearn.layer_stats import layer_sums


def answer(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """Sums of one hidden layer's outputs in each model of the message, over local training data."""
    uncovered(local, "statistics of hidden layers")
    (classes, ignored), head = groups(local.client, record), str(record["head"]) or None
    layers: list[Hidden] = []
    seconds, sums = 0.0, []
    for i in range(records.ints(record, "models")[0]):
        model, names = local.load(records.read_model(content, f"{records.MODEL}.{i}"))
        check_classes(model, classes, head)
        batches = iter(local.own(record).kept())
        first = next((b for b in batches if len(unpack(b)[1])), None)
        if first is None:  # without a sample to run, nothing is known of the model
            return statistics.write(local.client, Statistics(), seconds)
        started = time.perf_counter()
        if not layers:
            rows = to_device(take_rows(unpack(first)[0], slice(2)), local.device)
            layers = find_layers(model, rows, str(record["erase"]), head=head)
        at = layers[records.ints(record, "position")[0]].layer
        data = chain([first], batches)
        sums.append(layer_sums(model, data, [at], classes, ignored=ignored, device=local.device)[at])
        seconds += time.perf_counter() - started
    theirs = tuple(replace(h, weight=names[h.weight], shift=names[h.shift]) for h in layers)
    return statistics.write(local.client, Statistics(theirs, tuple(sums)), seconds)
