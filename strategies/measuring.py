"""Measuring a model: each client on its own data; the server gets their numbers and averages them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from fl_unlearn.metrics import METRICS, find
from fl_unlearn.metrics.contract import Measured, Metric, Number, Subject, combine, measure
from fl_unlearn.types import SettingsError, StateDict
from strategies.client import Client
from strategies.contract import Federation
from strategies.errors import StrategyError
from strategies.tasks import Answer, Settings, Tensors, task

_SAMPLES = "#n"
_NOT_FINITE = "it is not finite; has the model diverged?"


@task("measure")
def measure_task(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Measure a model on one client's data.

    Tensors: ``model``, and ``original``, the model before forgetting. Settings: ``seed``, and ``metrics``,
    names of `METRICS`. Answers with numbers ``<metric>/<key>`` and ``<metric>/<key>#n``, the samples that it
    was measured on, and with notes ``<metric>`` or ``<metric>/<key>``: why that could not be measured.
    """
    s: Any = settings
    metrics = _known(s["metrics"])
    subject = subject_of(client, tensors["model"], tensors["original"], s["seed"])
    numbers: dict[str, float] = {}
    notes: dict[str, str] = {}
    for metric in metrics:
        answer = measure(metric, subject)
        if isinstance(answer, str):
            notes[metric.name] = answer
            continue
        for key, number in answer.items():
            name = f"{metric.name}/{key}"
            if math.isfinite(number.value):
                numbers[name], numbers[name + _SAMPLES] = number.value, number.samples
            else:
                notes[name] = _NOT_FINITE
    return Answer(client.count("held-out"), numbers=numbers, notes=notes)


def subject_of(client: Client, model: StateDict, original: StateDict, seed: int) -> Subject:
    """What a client measures on: its data in order, and three models."""
    return Subject(
        model=client.model(model),
        original=client.model(original),
        fresh=client.fresh(seed),
        forget=client.batches("forget"),
        retained=client.batches("retained"),
        held_out=client.batches("held-out"),
        triggered=client.batches("triggered"),
        classes=() if client.request is None else client.request.classes,
        seed=seed,
    )


def measure_all(
    federation: Federation,
    model: StateDict,
    original: StateDict,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Measured]:
    """Measure a model at every client, and average.

    Costs one round of ``federation``, as every question does: read its `Cost` before, not after.

    Args:
        federation: The clients.
        model: The model in question.
        original: The model before forgetting.
        metrics: Names of `METRICS`; None: all.
        seed: For whatever draws at random, and of the model that was never trained.

    Returns:
        Key to value, or why there is none: every column of the metrics in order, each metric's followed by
        the keys it has no column for.

    Raises:
        StrategyError: If there is no metric of a name.
    """
    chosen = _known(METRICS if metrics is None else metrics)
    names = [m.name for m in chosen]
    answers = list(
        federation.ask(
            "measure", {"model": model, "original": original}, {"seed": seed, "metrics": names}
        ).values()
    )
    out: dict[str, Measured] = {}
    for metric in chosen:
        given = [_numbers(metric, answer) for answer in answers]
        extra = (key for numbers in given if not isinstance(numbers, str) for key in numbers)
        out |= combine(given, dict.fromkeys([*(c.key for c in metric.columns), *extra]))
    return out


def _numbers(metric: Metric, answer: Answer) -> dict[str, Number] | str:
    """What one client answered for a metric; a value that it found not to be finite is not a number here."""
    if metric.name in answer.notes:
        return answer.notes[metric.name]
    start = f"{metric.name}/"
    out = {
        name.removeprefix(start): Number(value, int(answer.numbers[name + _SAMPLES]))
        for name, value in answer.numbers.items()
        if name.startswith(start) and not name.endswith(_SAMPLES)
    }
    broken = [name for name in answer.notes if name.startswith(start)]
    return out | {name.removeprefix(start): Number(math.nan, 1) for name in broken}


def _known(names: Iterable[str]) -> list[Metric]:
    try:
        return find(names)
    except SettingsError as e:
        raise StrategyError(str(e)) from e
