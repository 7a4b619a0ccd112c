"""Asking the clients to score candidate updates on their own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import RecordDict

from fl_unlearn.calibration import ScoreSums, Tally
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import records
from fl_unlearn.flower.ask_sum import Said, ask_sum
from fl_unlearn.flower.own_privacy import to_text
from fl_unlearn.flower.panel import Panel
from fl_unlearn.types import REST, AnswerError, ClassScores
from fl_unlearn.vote import Votes


@dataclass(frozen=True)
class Scored:
    """What the clients measured.

    Attributes:
        rows: One row per model; in it the model as it is, then each candidate: the clients' scores, added.
        clients: How many clients' scores they are.
        votes: What each client measured on the first of the models; None where only sums are known.
    """

    rows: list[list[Tally]]
    clients: int
    votes: Votes | None


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
        privacy=to_text(panel.settings.privacy),
        clients=list(panel.request.clients),
        ignored=list(panel.ignored),
    )
    content = RecordDict({records.HEAD: head, **(records.write_update(base) if base else {})})
    for i, state in enumerate(states):
        content[f"{records.MODEL}.{i}"] = records.to_arrays(state)
    if panel.settings.privacy.score_noise or panel.settings.privacy.masked:
        return _ask_sum(panel, content, len(states), 1 + len(grid))
    defence, request = panel.settings.defence, panel.request
    votes = Votes(
        request.classes,
        request.clients,
        liars=defence.liars,
        weight=defence.weight,
        trained=panel.examples,
    )
    sums = ScoreSums(request, panel.ignored)

    def take(client: str, reply: RecordDict) -> None:
        scores = records.read_scores(reply, models=len(states), candidates=1 + len(grid))
        panel.plausible(client, max((sum(row[0].total.values()) for row in scores), default=0))
        _as_asked(scores[0][0], panel)
        sums.add(client, scores)
        votes.add(client, [s.without(panel.ignored) for s in scores[0]])

    panel.gather("scoring", records.SCORE, content, take)
    return Scored(sums.rows(), sums.clients, votes)


def _as_asked(scores: ClassScores, panel: Panel) -> None:
    """A client is asked for so many samples of the classes to forget and of all others, at most of either.

    Raises:
        AnswerError: If it says that it scored more.
    """
    most, request = panel.settings.calibration_samples, panel.request
    named = sum(n for c, n in scores.total.items() if c in request.classes)
    largest = max(named, sum(scores.total.values()) - named)
    if most and request.kind == "classes" and largest > most:
        raise AnswerError(f"{largest} samples of one kind scored, where at most {most} were asked for")


def _ask_sum(panel: Panel, content: RecordDict, models: int, candidates: int) -> Scored:
    """The clients' scores of two groups, added: noisy, or under masks, no single client's are looked at."""
    size, privacy = 2 + 2 * models * candidates, panel.settings.privacy

    def read(reply: RecordDict) -> tuple[int, Said]:
        records.read_head(reply)
        return size, {}

    if privacy.score_noise:
        panel.release(privacy.score_noise)
    summed = ask_sum(panel, "scoring", records.SCORE, content, read)
    values = summed.total.round().astype(int).reshape(-1, 2)
    total = [max(0, int(n)) for n in values[0]]
    tallies = []
    for counts in values[1:]:
        right = [min(max(0, int(n)), most) for n, most in zip(counts, total, strict=True)]
        forget, retain = (
            ClassScores({label: r}, {label: n}, {label: 0.0})
            for label, r, n in zip((panel.request.classes[0], REST), right, total, strict=True)
        )
        tallies.append(Tally(forget, retain))
    rows = [tallies[i * candidates : (i + 1) * candidates] for i in range(models)]
    return Scored(rows, len(summed.clients), None)
