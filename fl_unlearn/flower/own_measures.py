"""What a client does when it is asked to measure: its own data, the models, numbers and reasons; no more."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fl_unlearn.batches import sample, seeded
from fl_unlearn.flower import measures, records
from fl_unlearn.flower.measures import BEFORE, NOT_KEPT, Answer
from fl_unlearn.flower.own_data import OwnData, groups, part
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import NotKept, Subject, measure

log = logging.getLogger(__name__)


def answer(
    client: str, record: ConfigRecord, data: OwnData, models: Mapping[str, nn.Module], fresh: nn.Module
) -> RecordDict:
    """Measure models on this client's own data.

    Args:
        client: The client's name.
        record: The question, as `Panel.ask_measures` writes it.
        data: The client's data. What is measured on is kept in memory: loaders may shuffle or be exhausted.
        models: `BEFORE`, `AFTER` to the model, in eval mode.
        fresh: A model that was never trained.
    """
    started = time.perf_counter()
    asked, (classes, ignored) = records.ints(record, "classes"), groups(client, record)
    most = records.ints(record, "samples")[0]
    held_out = sample(
        part(data.held_out if data.held_out is not None else (), ignored, named=False), asked, most
    )
    if data.asks:
        forget, retained = (sample(batches, (), most) for batches in (data.forget(), data.rest()))
    else:
        own = sample(part(data.kept(), ignored, named=False), classes, most)
        forget, retained = (list(part(own, classes, named=named)) for named in (True, False))
    out = Answer(otherwise=_nothing(("held-out", held_out), ("forgotten", forget), ("retained", retained)))
    before = models.get(BEFORE)
    for when, model in models.items():
        subject = Subject(
            model=model,
            original=NotKept(NOT_KEPT, next(model.parameters()).device) if before is None else before,
            fresh=fresh,
            forget=forget,
            retained=retained,
            held_out=held_out,
            classes=tuple(asked),
            seed=records.ints(record, "seed")[0],
            head=str(record.get("head") or "") or None,
        )
        for name in records.list_of(record, "measures"):
            _measure(when, str(name), subject, out)
    return measures.write(client, out, time.perf_counter() - started)


def _measure(when: str, name: str, subject: Subject, out: Answer) -> None:
    """Add what one metric measures of one model."""
    if name not in METRICS:
        out.reasons[f"{when}/{name}"] = "a client's fl-unlearn does not know this metric; update it"
        return
    metric = METRICS[name]
    try:
        found = measure(metric, subject)
    except Exception as e:  # of the project's model, say; what it says may quote data, so it stays here
        log.exception("%s could not be measured", name)
        found = f"{type(e).__name__}, see the client's log"
    if isinstance(found, str):
        out.reasons[f"{when}/{name}"] = found
        return
    for key in (c.key for c in metric.columns if c.key in found):
        if math.isfinite(found[key].value):
            out.numbers[f"{when}/{key}"] = found[key]
        else:
            out.reasons[f"{when}/{name}"] = "it is not finite; has the model diverged?"


def _nothing(*parts: tuple[str, Sequence[Any]]) -> str:
    """Why a metric may have left something out at this client."""
    missing = ", ".join(name for name, batches in parts if not batches)
    return (
        f"a client has no {missing} samples" if missing else "it does not apply to the samples a client has"
    )


def untrained(build: Callable[[], nn.Module], seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """A model with random weights of this seed, on ``device``; torch's own random state is left as it was."""
    with seeded(seed, device):
        return build().eval().to(device)
