"""What a request did besides accuracy: the clients measure the models before and after, the server averages.

Nothing depends on these numbers: what cannot be measured has a reason, and a request stands without it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from flwr.app import RecordDict

from fl_unlearn.flower import measures, records
from fl_unlearn.flower.measures import AFTER, BEFORE, NOT_KEPT, Answer
from fl_unlearn.flower.panel import Panel
from fl_unlearn.metrics import find
from fl_unlearn.metrics.contract import Measured, Metric, combine

log = logging.getLogger(__name__)


def measure_both(
    panel: Panel, after: dict[str, torch.Tensor], before: dict[str, torch.Tensor] | None
) -> dict[str, dict[str, Measured]]:
    """What the clients measure of the model after a request and of the one before, averaged; never an error.

    Args:
        panel: The clients; its settings name the metrics.
        after: The current model.
        before: The one before the update; None where there is none any more.

    Returns:
        Each key of the metrics' columns to ``{"before": ..., "after": ...}``; empty if none is asked for.
    """
    metrics = find(panel.settings.measures)
    if not metrics:
        return {}
    states, trouble = {AFTER: after} | ({BEFORE: before} if before is not None else {}), ""
    answers: list[Answer | str] = []
    try:
        answers = _ask(panel, metrics, states)
    except Exception as e:
        log.exception("the update is committed, but measuring what it did failed")
        trouble = f"asking the clients failed: {type(e).__name__}: {e}"
    shrugs = [a.otherwise for a in answers if isinstance(a, Answer)]

    def mean(model: str, metric: Metric, key: str) -> Measured:
        if model not in states:
            return Measured(None, 0, NOT_KEPT)
        given = [a if isinstance(a, str) else a.of(model, metric, key) for a in answers]
        given.sort(key=lambda g: g in shrugs)  # of several reasons the first is told
        return combine(given or [trouble or "no client was connected"], [key])[key]

    return {
        c.key: {model: mean(model, m, c.key) for model in (BEFORE, AFTER)} for m in metrics for c in m.columns
    }


def _ask(
    panel: Panel, metrics: Sequence[Metric], states: Mapping[str, dict[str, torch.Tensor]]
) -> list[Answer | str]:
    """What the clients measure of some models, each on its own data; of one that fails, why."""
    head = records.head(
        measures=[m.name for m in metrics],
        models=list(states),
        classes=list(panel.request.classes),
        ignored=list(panel.ignored),
        clients=list(panel.request.clients),
        head=panel.settings.head or "",
        samples=[panel.settings.calibration_samples],
        seed=[0],  # the same in every request, so that their numbers can be compared
    )
    content = RecordDict({records.HEAD: head})
    for name, state in states.items():
        content[f"{records.MODEL}.{name}"] = records.to_arrays(state)
    good: dict[str, Answer] = {}

    def take(client: str, reply: RecordDict) -> None:
        given = measures.read(reply, metrics=metrics, models=[*states])
        panel.plausible(client, max((n.samples for n in given.numbers.values()), default=0))
        good[client] = given

    # Not noted as failed or silent: what these clients answered before, they answered.
    failed, silent = panel.collect(records.MEASURE, content, take)
    for node, why in failed.items():
        log.warning("what client node %d measured is not used: %s", node, why)
    unanswered = ["no answer in time"] if silent else []
    reasons = (failed[node] for node in sorted(failed))
    return [*(good[c] for c in sorted(good)), *map(measures.storable, reasons), *unanswered]
