"""Asking the clients to score candidates where a client's data or samples are to be forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from flwr.app import RecordDict

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import data_scores, records
from fl_unlearn.flower.data_scores import DataScores
from fl_unlearn.flower.panel import Panel
from fl_unlearn.types import ClassScores
from fl_unlearn.vote import Said, SaidBy, Votes


@dataclass(frozen=True)
class Scored:
    """What the clients measured, added: of the model as it is, then of each candidate.

    Attributes:
        forget: On what is to be forgotten.
        held: On held-out samples, of all clients.
        clients: How many clients' scores they are.
        votes: The scores on held-out samples, client by client.
        answers: All scores, client by client.
    """

    forget: list[ClassScores]
    held: list[ClassScores]
    clients: int
    votes: Votes
    answers: dict[str, DataScores]

    def said(self, candidate: int) -> SaidBy:
        """What each client says of a candidate, by its number from 1 up; 0 is the model as it is."""
        return {
            client: (_said(own.forget[candidate]), _said(own.held[candidate]))
            for client, own in self.answers.items()
        }


def ask_data_scores(panel: Panel, state: dict[str, torch.Tensor], base: DampeningUpdate | None) -> Scored:
    """The clients' scores of a model, and of candidates.

    Args:
        panel: The clients; its request is for clients or samples.
        state: The model.
        base: The update of which all candidates are variants; None: no candidates.

    Raises:
        NotEnoughAnswersError: If too few answers are usable, or that of a client whose data is to be
            forgotten is not.
    """
    grid = panel.settings.grid if base else ()
    head = records.head(
        models=[1],
        thresholds=[t for t, _ in grid],
        dampenings=[lam for _, lam in grid],
        classes=[],
        clients=[],
        ignored=list(panel.ignored),
        samples=[panel.settings.calibration_samples],
        head=panel.settings.head or "",
    )
    content = RecordDict({records.HEAD: head, **(records.write_update(base) if base else {})})
    content[f"{records.MODEL}.0"] = records.to_arrays(state)
    good: dict[str, DataScores] = {}

    def take(client: str, reply: RecordDict) -> None:
        scores = data_scores.read(reply, candidates=1 + len(grid))
        panel.plausible(client, scores.samples)
        if client not in panel.request.named and scores.forget[0].total:
            scores = DataScores(
                [ClassScores() for _ in scores.forget], scores.held
            )  # nothing was asked of it
        good[client] = scores

    panel.gather("scoring", records.SCORE, content, take)
    panel.require(panel.request.named, good)
    ordered = [good[client] for client in sorted(good)]
    defence = panel.settings.defence
    votes = Votes((), liars=defence.liars, weight=defence.weight, trained=panel.examples, gains=True)
    for client, scores in good.items():
        votes.add(client, scores.held)
    return Scored(_added(s.forget for s in ordered), _added(s.held for s in ordered), len(good), votes, good)


def _said(scores: ClassScores) -> Said:
    return scores.accuracy() or 0.0, sum(scores.total.values())


def _added(answers: Iterable[list[ClassScores]]) -> list[ClassScores]:
    return [sum(own[1:], own[0]) for own in zip(*answers, strict=True)]
