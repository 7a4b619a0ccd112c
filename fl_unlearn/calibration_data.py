"""Deciding where a client's data, or single samples, are to be forgotten: as if they had not been trained on.

Such data is not to become unknown, and how well a model does on it that never saw it cannot be known without
training one. What was found to come nearest (``simulations.figures.client_targets``): the Fisher of all
layers (of the head alone it leaves a backdoor in place), the forget set's as one mean (merged label by label
it damages everything), and of all candidates that cost held-out samples at most ``max_retain_drop`` the one
with the lowest accuracy on the forget set. It is taken if that accuracy is then at most what clients measure
on held-out samples of like labels, plus ``forget_tolerance`` (it can fall below what retraining leaves, which
nobody knows). Else nothing is changed: the data is so like everybody's that its Fisher singles out nothing,
and whatever takes it away takes as much of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_unlearn.calibration import Candidate, measured, standing_alone
from fl_unlearn.types import (
    ClassScores,
    ForgetRequest,
    NotEnoughAnswersError,
    SettingsError,
    UnlearnSettings,
)
from fl_unlearn.vote import Votes, differs

DATA: Mapping[str, Any] = {
    "fisher_scope": "all",
    "merge_rule": "mean",
    "candidates": (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0),
    "dampenings": (1.0, 0.1),
    "max_retain_drop": 0.01,
}
"""What differs from the default settings where a client or samples are to be forgotten."""

NOISE = 0.02
"""How far trimming may move an accuracy on few samples without anybody lying."""


def settings_for(request: ForgetRequest, settings: UnlearnSettings) -> UnlearnSettings:
    """How a request of this kind is served: `DATA` in place of what the settings leave at its default.

    Args:
        request: For classes, the settings are as they are.
        settings: A value that differs from the default was given on purpose, and stays.

    Raises:
        SettingsError: If something is to be erased for a client or samples.
    """
    if request.kind == "classes":
        return settings
    if settings.erases:
        raise SettingsError(
            f"only classes can be erased in hidden layers, and the request names {named(request)}; use "
            f"erase='none' (preset 'fast'), got {settings.erase!r}"
        )
    plain = UnlearnSettings()
    return replace(settings, **{k: v for k, v in DATA.items() if getattr(settings, k) == getattr(plain, k)})


def named(request: ForgetRequest) -> str:
    """What a request names, in a few words; samples by their number only."""
    if request.kind == "classes":
        whose = f" of client {', '.join(request.clients)}" if request.clients else ""
        return f"class {', '.join(map(str, request.classes))}{whose}"
    if request.kind == "client":
        return f"all data of client {', '.join(request.clients)}"
    return ", ".join(
        f"{len(own)} sample{'' if len(own) == 1 else 's'} of client {client}"
        for client, own in request.samples.items()
    )


def like_labels(forget: ClassScores, held: ClassScores, votes: Votes | None = None) -> float:
    """Accuracy on held-out samples with the labels, in the shares, of the forget set.

    It is that of the sums, unless a few clients move those further than `NOISE` and other samples would.

    Args:
        forget: Scores of the model as it is on the forget set.
        held: The same on held-out samples.
        votes: The same client by client; None: the sums alone decide.

    Raises:
        NotEnoughAnswersError: If there is no held-out sample of any of these labels.
    """
    labels = [c for c in forget.total if held.total.get(c)]
    if not labels:
        raise NotEnoughAnswersError(
            f"no client has held-out samples of the forget set's labels {sorted(forget.total)}, which tell "
            "what is not trained on; nothing was changed"
        )
    known = sum(forget.total[c] * held.correct[c] / held.total[c] for c in labels) / sum(
        forget.total[c] for c in labels
    )
    voted = votes.accuracy(forget.total) if votes is not None and votes.liars else None
    samples = sum(held.total[c] for c in labels)
    if voted is not None and differs((known, samples), (voted, samples), NOISE):
        return voted
    return known


def judge_data(
    forget: Sequence[ClassScores],
    held: Sequence[ClassScores],
    like: float,
    settings: UnlearnSettings,
    votes: Votes | None = None,
) -> list[Candidate]:
    """One verdict per candidate; what is called retained is held-out.

    Args:
        forget: Scores on the forget set: of the model as it is, then of each candidate.
        held: The same on held-out samples.
        like: Accuracy of the model as it is on held-out samples with the forget set's labels.
        settings: The candidates, and what is accepted.
        votes: The clients' scores on held-out samples one by one; None: sums alone decide.

    Raises:
        NotEnoughAnswersError: If there is nothing to measure on.
    """
    before, most = measured(held[0], "held-out"), settings.max_retain_drop
    votes = votes if votes is not None and votes.liars else None
    candidates = []
    for k, ((t, lam), own, other) in enumerate(zip(settings.grid, forget[1:], held[1:], strict=True), 1):
        accuracy, kept = measured(own, "forgotten"), measured(other, "held-out")
        drop, verdict = before - kept, votes.verdict(k) if votes else None
        fine = accuracy <= like + settings.forget_tolerance
        by_vote = verdict is None or (verdict.drop or 0.0) <= most
        few = verdict is not None and drop > most and verdict.least_drop <= most
        candidates.append(
            Candidate(
                threshold=t,
                dampening=lam,
                forget_accuracy=accuracy,
                retain_accuracy=kept,
                retain_drop=drop,
                worst_forget_accuracy=accuracy,
                worst_retain_drop=drop,
                cost=max(drop, 0.0),
                passed=fine and by_vote and (drop <= most or few),
                everywhere=fine,
                trimmed_drop=verdict.drop if verdict else None,
                disputed=by_vote and few,
                against=votes.against(k, math.inf, most) if votes and few and fine else (),
            )
        )
    return candidates


def choose_data(
    candidates: Sequence[Candidate],
    known: float,
    like: float,
    settings: UnlearnSettings,
    needed: Collection[str] = (),
) -> Candidate | str:
    """The candidate for a client's data or samples, or why there is none.

    Args:
        candidates: As `judge_data` gives them.
        known: Accuracy of the model as it is on the forget set.
        like: As for `judge_data`.
        settings: What is accepted.
        needed: Clients without whom the request cannot be served.
    """
    if settings.force:
        return candidates[0]
    free = [c for c in candidates if max(c.retain_drop, c.trimmed_drop or 0.0) <= settings.max_retain_drop]
    best = None
    for pool in (free, [c for c in candidates if c.disputed]):
        best = min(pool, key=_rank, default=best)
        if best is not None and best.passed and best.forget_accuracy < known:
            return best
    reached = "no candidate is left"
    if best is not None:
        reached = f"the candidate that takes most leaves {best.forget_accuracy:.1%}"
    return (
        f"clients measure {known:.1%} on what is to be forgotten, and {like:.1%} on held-out samples of like "
        f"labels; where at most {100 * settings.max_retain_drop:.1f} points may be lost on held-out samples, "
        f"{reached}. Nothing was changed: this data is too like what is kept for its Fisher to tell them "
        f"apart; fine-tune or retrain without it{standing_alone(candidates, needed)}"
    )


def _rank(c: Candidate) -> tuple[float, ...]:
    """Of those that spare what is kept, the one that takes most; sums that are disputed say no cost."""
    cost = max(c.trimmed_drop or 0.0, 0.0) if c.disputed else c.cost
    return c.forget_accuracy, cost, -c.dampening, c.threshold


def choose_for_data(
    forget: Sequence[ClassScores], held: Sequence[ClassScores], like: float, settings: UnlearnSettings
) -> Candidate | str:
    """`choose_data` of what `judge_data` says."""
    candidates = judge_data(forget, held, like, settings)
    return choose_data(candidates, measured(forget[0], "forgotten"), like, settings)
