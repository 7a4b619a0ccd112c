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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_unlearn.calibration import Candidate, measured
from fl_unlearn.types import (
    ClassScores,
    ForgetRequest,
    NotEnoughAnswersError,
    SettingsError,
    UnlearnSettings,
)

DATA: Mapping[str, Any] = {
    "fisher_scope": "all",
    "merge_rule": "mean",
    "candidates": (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0),
    "dampenings": (1.0, 0.1),
    "max_retain_drop": 0.01,
}
"""What differs from the default settings where a client or samples are to be forgotten."""


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


def like_labels(forget: ClassScores, held: ClassScores) -> float:
    """Accuracy on held-out samples with the labels, in the shares, of the forget set.

    Raises:
        NotEnoughAnswersError: If there is no held-out sample of any of these labels.
    """
    labels = [c for c in forget.total if c in held.total]
    if not labels:
        raise NotEnoughAnswersError(
            f"no client has held-out samples of the forget set's labels {sorted(forget.total)}, which tell "
            "what is not trained on; nothing was changed"
        )
    return sum(forget.total[c] * held.correct[c] / held.total[c] for c in labels) / sum(
        forget.total[c] for c in labels
    )


def judge_data(
    forget: Sequence[ClassScores], held: Sequence[ClassScores], like: float, settings: UnlearnSettings
) -> list[Candidate]:
    """One verdict per candidate; what is called retained is held-out.

    Args:
        forget: Scores on the forget set: of the model as it is, then of each candidate.
        held: The same on held-out samples.
        like: Accuracy of the model as it is on held-out samples with the forget set's labels.
        settings: The candidates, and what is accepted.

    Raises:
        NotEnoughAnswersError: If there is nothing to measure on.
    """
    before = measured(held[0], "held-out")
    candidates = []
    for (t, lam), own, other in zip(settings.grid, forget[1:], held[1:], strict=True):
        accuracy, kept = measured(own, "forgotten"), measured(other, "held-out")
        drop = before - kept
        fine = accuracy <= like + settings.forget_tolerance
        passed = fine and drop <= settings.max_retain_drop
        candidates.append(
            Candidate(t, lam, accuracy, kept, drop, accuracy, drop, max(drop, 0.0), passed, fine)
        )
    return candidates


def choose_data(
    candidates: Sequence[Candidate], known: float, like: float, settings: UnlearnSettings
) -> Candidate | str:
    """The candidate for a client's data or samples, or why there is none.

    Args:
        candidates: As `judge_data` gives them.
        known: Accuracy of the model as it is on the forget set.
        like: As for `judge_data`.
        settings: What is accepted.
    """
    if settings.force:
        return candidates[0]
    free = [c for c in candidates if c.retain_drop <= settings.max_retain_drop]
    best = min(free, key=lambda c: (c.forget_accuracy, c.cost, -c.dampening, c.threshold), default=None)
    if best is not None and best.passed and best.forget_accuracy < known:
        return best
    reached = "no candidate is left"
    if best is not None:
        reached = f"the candidate that takes most leaves {best.forget_accuracy:.1%}"
    return (
        f"clients measure {known:.1%} on what is to be forgotten, and {like:.1%} on held-out samples of like "
        f"labels; where at most {100 * settings.max_retain_drop:.1f} points may be lost on held-out samples, "
        f"{reached}. Nothing was changed: this data is too like what is kept for its Fisher to tell them "
        "apart; fine-tune or retrain without it"
    )


def choose_for_data(
    forget: Sequence[ClassScores], held: Sequence[ClassScores], like: float, settings: UnlearnSettings
) -> Candidate | str:
    """`choose_data` of what `judge_data` says."""
    candidates = judge_data(forget, held, like, settings)
    return choose_data(candidates, measured(forget[0], "forgotten"), like, settings)
