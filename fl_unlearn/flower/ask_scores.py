"""Asking the clients to score candidate updates on their own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import RecordDict

from fl_unlearn.calibration import Tally, sum_scores
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import records
from fl_unlearn.flower.panel import Panel
from fl_unlearn.types import ClassScores


@dataclass(frozen=True)
class Scored:
    """What the clients measured.

    Attributes:
        rows: One row per model; in it the model as it is, then each candidate: the clients' scores, added.
        clients: How many clients' scores they are.
    """

    rows: list[list[Tally]]
    clients: int


def ask_scores(
    panel: Panel, states: Sequence[dict[str, torch.Tensor]], base: DampeningUpdate | None
) -> Scored:
    """The clients' scores of some models, and of candidates on each.

    Args:
        panel: The clients.
        states: The models.
        base: The update of which all candidates are variants; None: no candidates.

    Raises:
        NotEnoughAnswersError: If too few answers are usable.
    """
    grid = panel.settings.grid if base else ()
    head = records.head(
        models=[len(states)],
        thresholds=[t for t, _ in grid],
        dampenings=[lam for _, lam in grid],
        classes=list(panel.request.classes),
        samples=[panel.settings.calibration_samples],
        head=panel.settings.head or "",
    )
    content = RecordDict({records.HEAD: head, **(records.write_update(base) if base else {})})
    for i, state in enumerate(states):
        content[f"{records.MODEL}.{i}"] = records.to_arrays(state)
    good: dict[str, list[list[ClassScores]]] = {}

    def take(client: str, reply: RecordDict) -> None:
        scores = records.read_scores(reply, models=len(states), candidates=1 + len(grid))
        panel.plausible(client, max((sum(row[0].total.values()) for row in scores), default=0))
        good[client] = scores

    panel.gather("scoring", records.SCORE, content, take)
    ordered = {client: good[client] for client in sorted(good)}
    return Scored(sum_scores(ordered, panel.request, panel.ignored), len(good))
