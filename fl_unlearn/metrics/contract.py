"""The contract of a metric: a client measures on its own data, the server averages numbers.

A `Metric` gets one client's `Subject` and gives one `Number` per key. `combine` takes the mean over clients,
weighted by the samples measured. Nothing but these numbers leaves a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fl_unlearn.types import MeasureError, UnlearnError

Good = Literal["retrained", "low", "high"]
"""What "good" means: as near as can be to the retrained model's value; or simply low, or high (costs)."""

Unit = Literal["%", "nats", "steps", "bits", "", "s", "bytes"]
"""``%``: a share from 0 to 1, shown times 100. ``""``: a plain number."""


@dataclass(frozen=True)
class Subject:
    """What one client measures on.

    Attributes:
        model: The model in question, in eval mode; metrics leave it as it was.
        original: The model before forgetting.
        fresh: A model that was never trained.
        forget: Batches of this client's training samples that are to be forgotten; may be empty.
        retained: Batches of its other training samples.
        held_out: Batches of samples that no client trained on, every class among them.
        triggered: Held-out samples with a planted trigger, under the label that it is to cause; or empty.
        classes: The classes that are to be forgotten; empty where the request names none (a client, samples).
        seed: For whatever draws at random.
        head: Name of the model's head; None: it is found (`fisher.find_head`).
    """

    model: nn.Module
    original: nn.Module
    fresh: nn.Module
    forget: Iterable[Any]
    retained: Iterable[Any]
    held_out: Iterable[Any]
    triggered: Iterable[Any] = ()
    classes: tuple[int, ...] = ()
    seed: int = 0
    head: str | None = None


class NotKept(nn.Module):
    """Stands for the model before forgetting where there is none: what needs it is not measured.

    Args:
        why: What is wrong.
        device: Where the other models are.
    """

    def __init__(self, why: str, device: torch.device) -> None:
        super().__init__()
        self.why, self.nothing = why, nn.Parameter(torch.zeros(0, device=device))

    def forward(self, x: Any) -> torch.Tensor:
        """Always raises a MeasureError."""
        raise MeasureError(self.why)


@dataclass(frozen=True)
class Number:
    """One measured value, and how many samples it was measured on, > 0."""

    value: float
    samples: int


@dataclass(frozen=True)
class Column:
    """One key of a metric, as tables show it.

    Attributes:
        key: Unique name, kebab-case.
        title: Short heading.
        unit: Of the value.
        good: What "good" means.
        about: One sentence: what is measured, and how to read it.
        high: The largest value there can be; None: there is no bound. What clients measure is never below 0.
    """

    key: str
    title: str
    unit: Unit
    good: Good
    about: str
    high: float | None = None


@dataclass(frozen=True)
class Metric:
    """One way to measure what a model knows.

    Attributes:
        name: Unique name, kebab-case.
        columns: What it measures.
        measure: From a client's subject to key and number; raises `MeasureError` where it cannot be measured,
            and leaves out a key that does not apply to this client.
    """

    name: str
    columns: tuple[Column, ...]
    measure: Callable[[Subject], Mapping[str, Number]]


@dataclass(frozen=True)
class Measured:
    """A value over all clients, or why there is none.

    Attributes:
        value: The mean, weighted by samples; None: it could not be measured.
        samples: How many samples it rests on.
        why: Why there is no value; "" where there is one.
    """

    value: float | None
    samples: int = 0
    why: str = ""


def combine(answers: Sequence[Mapping[str, Number] | str], keys: Iterable[str]) -> dict[str, Measured]:
    """The clients' numbers of one metric, averaged.

    Args:
        answers: One per client: key to number, or why it could not measure.
        keys: The keys of the metric's columns.

    Returns:
        Key to value; where no client gave one, the first client's reason.
    """
    given = list(dict.fromkeys(a for a in answers if isinstance(a, str)))
    others = " (other clients give other reasons)" if len(given) > 1 else ""
    reasons = given[0] + others if given else ""
    out = {}
    for key in keys:
        numbers = [a[key] for a in answers if not isinstance(a, str) and key in a]
        samples = sum(n.samples for n in numbers)
        if not samples:
            out[key] = Measured(None, 0, reasons or "it does not apply to this request")
            continue
        value = sum(n.value * n.samples for n in numbers) / samples
        out[key] = Measured(value, samples) if math.isfinite(value) else Measured(None, 0, "it is not finite")
    return out


def measure(metric: Metric, subject: Subject) -> Mapping[str, Number] | str:
    """One client's numbers, or why it could not measure."""
    try:
        return metric.measure(subject)
    except UnlearnError as e:  # also what a diverged model's logits raise
        return str(e)
