"""The last look before a commit, and the first after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from fl_unlearn.calibration import Candidate
from fl_unlearn.caps import IsHead, exceeds
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.defence import Defence
from fl_unlearn.types import ClassScores, ForgetRequest, UnlearnSettings, UpdateError
from fl_unlearn.vote import Said, SaidBy, differs


def head_of(settings: UnlearnSettings) -> IsHead:
    """Tells a head's tensors by their names, as far as the server knows it."""
    if settings.fisher_scope.strip() == "head":
        return lambda name: True
    prefix = f"{settings.head}."
    return lambda name: settings.head is not None and name.startswith(prefix)


def caps_of(settings: UnlearnSettings, request: ForgetRequest) -> Defence:
    """The caps that a request is served under: rows of a head belong to classes, so are capped for these."""
    if request.kind == "classes":
        return settings.defence
    return replace(settings.defence, row_share=1.0)


def check_commit(
    state: Mapping[str, torch.Tensor],
    update: DampeningUpdate,
    scored: str | None,
    settings: UnlearnSettings,
    request: ForgetRequest,
    ignored: Collection[int] = (),
) -> None:
    """Check that what is about to be committed is what the clients scored, well-formed and within the caps.

    Args:
        state: The current model.
        update: What clients and the current model are to get.
        scored: Digest of the update that was scored; None where an older version did not note it.
        settings: How the request is served.
        request: The request; the head's rows of its classes may be selected whole.
        ignored: Classes forgotten before: the same.

    Raises:
        UpdateError: If it is not; nothing was changed.
    """
    if scored is not None and update.digest != scored:
        raise UpdateError(
            f"the update {update.digest[:12]} is not the one that the clients scored ({scored[:12]}); "
            "nothing was changed. What the request had left in the store was altered: make the request again"
        )
    DampeningUpdate.from_bytes(update.to_bytes())
    caps = caps_of(settings, request)
    if (name := exceeds(update, caps, {*request.classes, *ignored}, head_of(settings))) is not None:
        raise UpdateError(f"the update selects more of {name!r} than the caps allow; nothing was changed")
    after = apply_update(dict(state), update)
    for name in update.changes:
        if bool(state[name].isfinite().all()) and not bool(after[name].isfinite().all()):
            raise UpdateError(f"the update would leave {name!r} with non-finite values; nothing was changed")


def contradictions(
    chosen: Candidate | None,
    promised: Mapping[str, Sequence[Sequence[float]]],
    after: tuple[ClassScores, ClassScores],
    now_said: SaidBy,
    settings: UnlearnSettings,
    kept: str = "retained",
) -> tuple[str, ...]:
    """Where the measurements after a commit contradict those that it was decided by, in words.

    Differences count from `Defence.contradiction` up, and beyond three standard deviations of what another
    sample of the same data would give: loaders may shuffle. Only what the same clients said is compared, one
    by one and all together; of scores with noise nothing is, for the noise differs too.

    Args:
        chosen: What was committed, as calibration measured it; None where that is not known any more, or is
            of other clients than the sums now. Only looked at where nobody's own word is known.
        promised: What each client said of it then, as `Votes.said` gives it.
        after: The sums now, on the forgotten and the retained data.
        now_said: What each client says now.
        settings: How the request was served.
        kept: What the other data is called, in the words given back.
    """
    out, tolerance = [], settings.defence.contradiction
    if settings.privacy.score_noise:
        return ()
    same = sorted(set(promised) & set(now_said))
    for i, what in enumerate(("forgotten", kept)):
        if promised:
            then, now = (_together([said[c][i] for c in same]) for said in (promised, now_said))
        elif chosen is not None:
            samples = sum(after[i].total.values())
            then = (chosen.retain_accuracy if i else chosen.forget_accuracy, samples)
            now = (after[i].accuracy() or 0.0, samples)
        else:
            continue
        if differs(then, now, tolerance):
            out.append(f"{then[0]:.1%} on the {what} data was promised, {now[0]:.1%} is measured")
    for client in same:
        both = zip(("forgotten", kept), promised[client], now_said[client], strict=True)
        for what, (before, n), said in both:
            if differs((float(before), int(n)), said, tolerance):
                out.append(
                    f"client {client} said {before:.1%} on its {what} data before, and now {said[0]:.1%}"
                )
    return tuple(out)


def _together(said: Sequence[Sequence[float]]) -> Said:
    """What several clients say, as one."""
    samples = sum(int(n) for _, n in said)
    return (sum(accuracy * n for accuracy, n in said) / samples if samples else 0.0, samples)
