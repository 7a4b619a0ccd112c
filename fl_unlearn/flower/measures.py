"""A client's answer about what a model knows, as a message and back: numbers, numbers of samples, reasons.

It comes from the other side and is untrusted: `read` checks all of it before anything is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict

from fl_unlearn.flower import records
from fl_unlearn.metrics.contract import Column, Metric, Number
from fl_unlearn.types import AnswerError

BEFORE, AFTER = "before", "after"
"""Which of the two models a number is about."""

NOT_KEPT = "the model before forgetting was not kept when the server was restarted"

MAX_REASON = 300
_LARGEST = float(records.MAX_COUNT)
_ROUNDING = 1e-6  # of a mean of shares, or a norm, in float32


@dataclass
class Answer:
    """What one client measured.

    Attributes:
        numbers: ``<model>/<key>``, the key being a column's, to the number.
        reasons: ``<model>/<metric>`` to why the metric, or a part of it, could not be measured.
        otherwise: Why there is nothing where neither says it.
    """

    numbers: dict[str, Number] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    otherwise: str = ""

    def of(self, model: str, metric: Metric, key: str) -> Mapping[str, Number] | str:
        """One number under its key, or why there is none, as `metrics.contract.combine` takes it."""
        number = self.numbers.get(f"{model}/{key}")
        return {key: number} if number else self.reasons.get(f"{model}/{metric.name}") or self.otherwise


def write(client: str, answer: Answer, seconds: float) -> RecordDict:
    """A client's answer as a message."""
    record = records.head(
        client=client,
        seconds=seconds,
        names=list(answer.numbers),
        values=[float(n.value) for n in answer.numbers.values()],
        samples=[n.samples for n in answer.numbers.values()],
        absent=list(answer.reasons),
        reasons=[text[:MAX_REASON] for text in answer.reasons.values()],
        otherwise=answer.otherwise,
    )
    return RecordDict({records.HEAD: record})


def read(content: RecordDict, *, metrics: Sequence[Metric], models: Sequence[str]) -> Answer:
    """A client's answer, checked against what was asked.

    Args:
        content: The answer.
        metrics: The metrics asked for.
        models: `BEFORE`, `AFTER`: the models sent.

    Raises:
        AnswerError: If anything about the answer is malformed, implausible or not what was asked.
    """
    record = records.read_head(content)
    names, values = records.list_of(record, "names"), records.list_of(record, "values")
    samples = records.ints(record, "samples")
    absent, reasons = records.list_of(record, "absent"), records.list_of(record, "reasons")
    if not (len(names) == len(values) == len(samples) and len(absent) == len(reasons)):
        raise AnswerError(
            f"{len(names)} names have {len(values)} values and {len(samples)} numbers of samples; "
            f"{len(absent)} have {len(reasons)} reasons"
        )
    columns = {f"{model}/{c.key}": c for model in models for m in metrics for c in m.columns}
    asked = {f"{model}/{m.name}" for model in models for m in metrics}
    for given, known in ((names, columns.keys()), (absent, asked)):
        if unknown := [n for n in given if n not in known]:
            raise AnswerError(f"the answer has {str(unknown[0])[:50]!r}, which was not asked for")
        if len(set(given)) < len(given):
            raise AnswerError("the answer has a name twice")
    for name, value, count in zip(names, values, samples, strict=True):
        _check(columns[name], value, count)
    return Answer(
        {n: Number(float(v), c) for n, v, c in zip(names, values, samples, strict=True)},
        {n: storable(why) for n, why in zip(absent, reasons, strict=True)},
        storable(record.get("otherwise")),
    )


def _check(column: Column, value: Any, samples: int) -> None:
    if not 0 < samples <= records.MAX_COUNT:
        raise AnswerError(f"{column.key!r} was measured on {samples} samples")
    high = _LARGEST if column.high is None else column.high + _ROUNDING
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and -_ROUNDING <= value <= high):
        raise AnswerError(f"{column.key!r} is {str(value)[:50]}, where 0 to {high:g} is possible")


def storable(value: Any) -> str:
    """A reason from outside, short and storable."""
    text = " ".join(str(value).split())[:MAX_REASON]
    return text.encode(errors="replace").decode() or "the client gave no reason"
