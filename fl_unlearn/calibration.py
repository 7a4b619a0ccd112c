"""Measure before deciding: clients score candidate updates, the server picks one or refuses.

A threshold that is wrong fails silently and badly: the class stays, or others are lost with it. So nothing
is committed that was not scored on the clients' own data. The current model must pass; earlier models are
looked at too, and a candidate that is good on all of them is preferred. Whether one passes is a vote, which a
few clients that lie do not decide (`vote`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from fl_unlearn.running import RunningSum
from fl_unlearn.types import ClassScores, ForgetRequest, NotEnoughAnswersError, UnlearnSettings
from fl_unlearn.vote import Votes

CURRENT_SHARE = 0.75
RESOLUTION = 0.0025


@dataclass
class Tally:
    """Scores of one model, split into what is to be forgotten and what is to be kept."""

    forget: ClassScores = field(default_factory=ClassScores)
    retain: ClassScores = field(default_factory=ClassScores)

    def add(self, scores: ClassScores, request: ForgetRequest, client: str) -> None:
        """Add one client's scores; where the request names clients, only theirs can be forgotten."""
        named = not request.clients or client in request.clients
        for label, total in scores.total.items():
            one = ClassScores({label: scores.correct[label]}, {label: total}, {label: scores.loss[label]})
            if named and label in request.classes:
                self.forget = self.forget + one
            else:
                self.retain = self.retain + one


@dataclass(frozen=True)
class Candidate:
    """What the clients measured of one candidate; accuracies 0 to 1 over the local data that was scored.

    Attributes:
        threshold: The t of FIUn.
        dampening: The lambda of FIUn.
        forget_accuracy: On the forgotten data, current model.
        retain_accuracy: On the retained data, current model.
        retain_drop: Retained accuracy before less after, current model.
        worst_forget_accuracy: The largest forget accuracy over all models looked at.
        worst_retain_drop: The largest retained drop over all models looked at.
        cost: What counts when candidates are compared: three quarters the current model's retained drop, one
            quarter the mean of the other models'; a gain counts as no drop.
        passed: Whether it forgets and keeps within tolerance on the current model.
        everywhere: Whether it forgets within tolerance on every model looked at.
        retain_loss_change: Mean cross-entropy on the retained data after less before, the mean over all
            models looked at.
        trimmed_forget: The forget accuracy by the clients' vote (`vote.Verdict`); None where none was held.
        trimmed_drop: The retained drop by their vote; the same.
        disputed: Whether it passes only because the word of a few does not decide against all others.
        against: The fewest clients without whose word it would pass by the sums; none if it does, or if it
            takes more than the vote stands.
    """

    threshold: float
    dampening: float
    forget_accuracy: float
    retain_accuracy: float
    retain_drop: float
    worst_forget_accuracy: float
    worst_retain_drop: float
    cost: float
    passed: bool
    everywhere: bool
    retain_loss_change: float = 0.0
    trimmed_forget: float | None = None
    trimmed_drop: float | None = None
    disputed: bool = False
    against: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class ScoreSums:
    """The clients' scores, added as they arrive; the sums do not depend on the order of arrival.

    Args:
        request: What is to be forgotten.
        ignored: Classes that count neither as forgotten nor as retained.
    """

    def __init__(self, request: ForgetRequest, ignored: Collection[int] = ()) -> None:
        self._request, self._ignored = request, set(ignored)
        self._shape = (0, 0)
        self._total: dict[tuple[bool, int], int] = {}
        self._correct: dict[tuple[bool, int], np.ndarray] = {}
        self._loss: dict[tuple[bool, int], RunningSum] = {}
        self.clients = 0

    def add(self, client: str, models: Sequence[Sequence[ClassScores]]) -> None:
        """Add one client's: one row per model, in it the model as it is, then each candidate."""
        named = not self._request.clients or client in self._request.clients
        self._shape = (len(models), len(models[0]))
        self.clients += 1
        for label, count in models[0][0].total.items():
            if label in self._ignored:
                continue
            key = (named and label in self._request.classes, label)
            correct = np.array([[s.correct[label] for s in row] for row in models], dtype=np.int64)
            loss = torch.tensor([[s.loss[label] for s in row] for row in models], dtype=torch.float64)
            self._total[key] = self._total.get(key, 0) + count
            self._correct[key] = self._correct[key] + correct if key in self._correct else correct
            self._loss.setdefault(key, RunningSum()).add({"": loss})

    def rows(self) -> list[list[Tally]]:
        """One row per model, one tally per candidate."""
        models, candidates = self._shape
        rows = [[Tally() for _ in range(candidates)] for _ in range(models)]
        for key in sorted(self._total):
            forgotten, label = key
            loss = self._loss[key].total()[""].tolist()
            for i, row in enumerate(rows):
                for k, tally in enumerate(row):
                    part = tally.forget if forgotten else tally.retain
                    part.total[label] = self._total[key]
                    part.correct[label] = int(self._correct[key][i, k])
                    part.loss[label] = loss[i][k]
        return rows


def sum_scores(
    answers: Mapping[str, Sequence[Sequence[ClassScores]]],
    request: ForgetRequest,
    ignored: Collection[int] = (),
) -> list[list[Tally]]:
    """Add the clients' scores less the ``ignored`` classes: one row per model, one tally per candidate."""
    sums = ScoreSums(request, ignored)
    for client, models in answers.items():
        sums.add(client, models)
    return sums.rows()


def judge(
    rows: Sequence[Sequence[Tally]], settings: UnlearnSettings, votes: Votes | None = None
) -> list[Candidate]:
    """Turn the sums into one verdict per candidate.

    Args:
        rows: One row per model, the current one first; in each, the model as it is, then each candidate.
        settings: The grid of candidates, and the tolerances.
        votes: The clients' scores one by one; None: sums alone decide.
    """
    out, limits = [], (settings.forget_tolerance, settings.max_retain_drop)
    for k, (threshold, dampening) in enumerate(settings.grid, start=1):
        forget = [measured(row[k].forget, "forgotten") for row in rows]
        kept = [measured(row[k].retain, "retained") for row in rows]
        drops = [measured(row[0].retain, "retained") - after for row, after in zip(rows, kept, strict=True)]
        verdict = votes.verdict(k) if votes is not None and votes.liars else None
        by_sums = forget[0] <= settings.forget_tolerance and drops[0] <= settings.max_retain_drop
        by_vote = verdict is None or _within(verdict.forget, verdict.drop, settings)
        few = verdict is not None and _within(verdict.least_forget, verdict.least_drop, settings)
        out.append(
            Candidate(
                threshold=threshold,
                dampening=dampening,
                forget_accuracy=forget[0],
                retain_accuracy=kept[0],
                retain_drop=drops[0],
                worst_forget_accuracy=max(forget),
                worst_retain_drop=max(drops),
                cost=_cost(drops),
                passed=by_vote and (by_sums or few),
                everywhere=max(forget) <= settings.forget_tolerance,
                retain_loss_change=sum(_loss(row[k]) - _loss(row[0]) for row in rows) / len(rows),
                trimmed_forget=verdict.forget if verdict else None,
                trimmed_drop=verdict.drop if verdict else None,
                disputed=by_vote and few and not by_sums,
                against=votes.against(k, *limits) if votes and few and not by_sums else (),
            )
        )
    return out


def _within(forget: float | None, drop: float | None, settings: UnlearnSettings) -> bool:
    return (forget or 0.0) <= settings.forget_tolerance and (drop or 0.0) <= settings.max_retain_drop


def _loss(tally: Tally) -> float:
    return sum(tally.retain.loss.values()) / sum(tally.retain.total.values())


def _cost(drops: Sequence[float]) -> float:
    """Of retained accuracy; the current model's drop first."""
    current, *others = (max(d, 0.0) for d in drops)
    return CURRENT_SHARE * current + (1 - CURRENT_SHARE) * sum(others) / max(1, len(others))


def measured(scores: ClassScores, what: str) -> float:
    """The accuracy, which must have been measured on something.

    Raises:
        NotEnoughAnswersError: If there was no sample: that is no 0 %.
    """
    accuracy = scores.accuracy()
    if accuracy is None:
        raise NotEnoughAnswersError(
            f"no client scored the candidates on {what} data, so none can be chosen; nothing was changed. "
            "See which clients did not answer, and repeat the request when they do"
        )
    return accuracy


def choose(candidates: Iterable[Candidate], *, by_loss: bool = False) -> Candidate | None:
    """The passing candidate that costs the retained data least.

    Those that forget on every model looked at come before all others; where none does, what is left there
    decides. Within a quarter of a point of cost (`RESOLUTION`; less is noise) the one that forgets more; then
    the mildest dampening; then the smallest threshold, which forgets with the larger margin. Weight and
    resolution were chosen on one federation (digits, seed 0) and held on two others (seeds 1 and 2). Disputed
    candidates come last, and are compared by the vote's numbers: the sums hold what is disputed.

    Args:
        candidates: What was measured.
        by_loss: Whether the retained loss decides within that quarter of a point: where candidates are scored
            on samples that models know by heart, accuracies hardly differ, and the smallest threshold costs
            more on others.
    """

    def rank(c: Candidate) -> tuple[float, ...]:
        if c.disputed:
            cost, forget = max(c.trimmed_drop or 0.0, 0.0), c.trimmed_forget or 0.0
            return 1, 0.0, round(cost / RESOLUTION), 0.0, forget, -c.dampening, c.threshold
        left = 0.0 if c.everywhere else c.worst_forget_accuracy
        loss = c.retain_loss_change if by_loss else 0.0
        return 0, left, round(c.cost / RESOLUTION), loss, c.worst_forget_accuracy, -c.dampening, c.threshold

    return min((c for c in candidates if c.passed), key=rank, default=None)


def _by_sums(c: Candidate, settings: UnlearnSettings) -> bool:
    return c.forget_accuracy <= settings.forget_tolerance and c.retain_drop <= settings.max_retain_drop


def standing_alone(candidates: Sequence[Candidate], needed: Collection[str] = ()) -> str:
    """A sentence on the fewest clients that stand against some candidate; empty if there are none.

    Args:
        candidates: All candidates.
        needed: Clients without whom the request cannot be served.
    """
    said = [c.against for c in candidates if c.against]
    if not said:
        return ""
    few = min(said, key=lambda clients: (len(clients), clients))
    who = f"client{'s' if len(few) > 1 else ''} {', '.join(few)}"
    text = (
        f". Without the word of {who} one would have passed by the sums: either that is a lie, or only they "
        "hold what would be lost"
    )
    if not set(few).isdisjoint(needed):
        return text
    return f"{text}. If you know it to be a lie, repeat the request with Defence(distrusted={few!r})"


def explain_refusal(
    candidates: Sequence[Candidate], settings: UnlearnSettings, needed: Collection[str] = ()
) -> str:
    """One or two sentences on why no candidate passed, and what to try; ``needed`` as in `standing_alone`."""
    best = min(candidates, key=lambda c: (c.forget_accuracy, c.retain_drop))
    tried = ", ".join(f"{t:g}" for t in settings.thresholds)
    text = (
        f"none of the thresholds {tried} brought the accuracy on the forgotten data to "
        f"{settings.forget_tolerance:.1%} or below while losing at most "
        f"{100 * settings.max_retain_drop:.1f} points on the retained data; nothing was changed. Closest: "
        f"t = {best.threshold:g} (dampening {best.dampening:g}) left {best.forget_accuracy:.1%} and cost "
        f"{100 * best.retain_drop:.1f} points"
    )
    if alone := standing_alone(candidates, needed):
        text += alone
    elif any(_by_sums(c, settings) for c in candidates):
        text += ". By the sums one would have passed, but other holders of the same classes say otherwise"
    if best.forget_accuracy > settings.forget_tolerance:
        return (
            text + ". Try smaller thresholds, a wider fisher scope, or see whether others hold the same data"
        )
    if settings.erase != "none":
        return text + ". The erasure is part of that cost: try a smaller erase_strength, or erase='none'"
    return text + ". Try larger thresholds, or accept a larger drop"
