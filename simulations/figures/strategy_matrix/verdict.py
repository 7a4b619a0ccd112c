"""What the runs of one strategy say together: one row of the table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_unlearn.flower import ForgetResult
from fl_unlearn.types import UnlearnSettings
from simulations.figures.strategy_matrix import legacy, today
from simulations.figures.strategy_matrix.federation import Problem
from simulations.figures.strategy_matrix.trial import Trace, run_legacy, run_today

LASTING = 5
"""Rounds of training after the request."""

APIS: dict[str, tuple[dict[str, Any], Callable[..., Trace]]] = {
    "flwr.serverapp.strategy": (dict(today.CASES), run_today),
    "flwr.server.strategy": (dict(legacy.CASES), run_legacy),
}
"""Module of the strategies to its cases, and what runs them."""

KEPT = ("FedAvgM", "FedAdagrad", "FedAdam", "FedYogi")
"""Strategies that remember values or steps of the model from one round for the next."""


@dataclass(frozen=True)
class Row:
    """One strategy; accuracies are test accuracies, 0 to 1, None where there is no model to measure.

    Attributes:
        api: The strategy's module.
        strategy: Its name.
        identical: Whether models and metrics of every round before the request are bit for bit the bare ones.
        before: Accuracy on the class when it was asked to be forgotten.
        after: Right after the request.
        lasting: After each of the `LASTING` rounds of training that followed, without the class.
        retained_before: Accuracy on all other classes when the request came.
        retained_end: The same after the last round.
        control: As ``lasting``, with what the strategy remembers left as it was; None: not run.
        committed: Whether an update was committed.
        message: What became of the request, in words.
    """

    api: str
    strategy: str
    identical: bool
    before: float | None
    after: float | None
    lasting: tuple[float, ...]
    retained_before: float | None
    retained_end: float | None
    control: tuple[float, ...] | None
    committed: bool
    message: str


def judge(
    api: str,
    name: str,
    problem: Problem,
    rounds: int,
    *,
    control: bool,
    settings: UnlearnSettings | None = None,
) -> Row:
    """Run one strategy bare, wrapped with a request after ``rounds``, and as a control."""
    cases, run = APIS[api]
    case = cases[name]
    bare = run(case, problem, rounds)
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {"after_round": rounds, "settings": settings}
        full = run(case, problem, rounds + LASTING, folder=Path(folder) / "full", **shared)
        other: Trace | None = None
        if control and full.forgotten:
            other = run(
                case, problem, rounds + LASTING, folder=Path(folder) / "control", control=True, **shared
            )
    (result,) = full.results
    after = _measured(problem, result) if result.committed else None
    return Row(
        api,
        name,
        _same(bare, full),
        full.forgotten.get(rounds),
        after,
        _later(full, rounds),
        full.retained.get(rounds),
        full.retained.get(rounds + LASTING),
        None if other is None else _later(other, rounds),
        result.committed,
        result.message,
    )


def _same(bare: Trace, full: Trace) -> bool:
    models = {r: m for r, m in full.models.items() if r in bare.models}
    metrics = {r: m for r, m in full.metrics.items() if r in bare.metrics}
    return bool(models) and bool(metrics) and (models, metrics) == (bare.models, bare.metrics)


def _later(trace: Trace, rounds: int) -> tuple[float, ...]:
    return tuple(value for round_, value in trace.forgotten.items() if round_ > rounds)


def _measured(problem: Problem, result: ForgetResult) -> float:
    return problem.accuracies([tensor.numpy() for tensor in result.state.values()])[0]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ["strategy", "bit-identical until the request", "class: before", "after", "5 rounds later (worst)"]
    head += ["all others: before", "5 rounds later", "control (worst)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for api in dict.fromkeys(row.api for row in rows):
        lines.append(f"| **`{api}`** |" + " |" * (len(head) - 1))
        for row in (r for r in rows if r.api == api):
            cells = [row.strategy, "yes" if row.identical else "**no**", _percent(row.before)]
            if row.committed:
                cells += [_percent(row.after), _percent(max(row.lasting)), _percent(row.retained_before)]
                cells += [_percent(row.retained_end), _percent(max(row.control)) if row.control else "-"]
            else:
                cells += ["refused", *["-"] * 4]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
