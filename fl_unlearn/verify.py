"""Measuring what a model knows: accuracy and loss, class by class, for one model or many candidates.

Accuracy on the forgotten classes is what can be checked in one pass at every client. It is not proof that
the information is gone: a probe on the features, relearning speed or membership inference may still show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from fl_unlearn.batches import check_logits, to_device, unpack
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.fisher import find_head
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, FisherError, StateDict


def score(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> ClassScores:
    """Accuracy and cross-entropy of ``model`` per class over ``loader``, in eval mode.

    Args:
        model: A classifier; its mode is restored afterwards.
        loader: Batches as `batches.unpack` takes them; labels in 0 .. C-1.
        device: Where to compute; default where the model's parameters are.
    """
    return score_candidates(model, loader, [None], device=device)[0]


def score_candidates(
    model: nn.Module,
    loader: Iterable[Any],
    updates: Sequence[DampeningUpdate | None],
    *,
    device: torch.device | str | None = None,
    head: str | None = None,
) -> list[ClassScores]:
    """Score a model under several candidate updates in one pass over the data; the model is not changed.

    Updates of only the head cost one matrix product each: the features are computed once, and once more for
    all that share their erasures.

    Args:
        model: A classifier; its mode is restored afterwards.
        loader: Batches as `batches.unpack` takes them.
        updates: What to score; None stands for the model as it is.
        device: Where to compute; default where the model's parameters are.
        head: Name of the head module when it cannot be found automatically.

    Returns:
        One score per update, in their order.
    """
    device = torch.device(device) if device else next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    tallies: torch.Tensor | None = None
    model.eval()
    try:
        with torch.no_grad():
            predict = _predictor(model, updates, head)
            for batch in loader:
                x, y = unpack(batch)
                if y.numel() == 0:
                    continue
                logits = torch.stack(predict(to_device(x, device)))
                check_logits(logits[0], y, None, "a batch")
                tally = _tally(logits, y.to(device))
                tallies = tally if tallies is None else tallies + tally
    finally:
        for module, training in modes.items():
            module.training = training
    return [_scores_of(t) for t in tallies] if tallies is not None else [ClassScores() for _ in updates]


def score_state(
    model: nn.Module, state: StateDict, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> ClassScores:
    """Load ``state`` into ``model`` and score it."""
    model.load_state_dict(dict(state))
    return score(model, loader, device=device)


def score_checkpoints(
    store: RunStore,
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ClassScores]:
    """Score every checkpoint of a run.

    Args:
        store: The run's store.
        model: The project's model; its values are replaced.
        loader: Held-out batches as `batches.unpack` takes them; iterated once per checkpoint.
        device: Where to compute; default where the model's parameters are.
        progress: Called with (checkpoints done, checkpoints in all).

    Returns:
        Model name to scores, in chronological order.

    Raises:
        CorruptCheckpointError: If a checkpoint is missing or does not match its digest.
    """
    kept = store.kept()
    names = [node.name for node in store.umig.nodes() if node.name in kept]
    scores = {}
    for done, name in enumerate(names, start=1):
        scores[name] = score_state(model, store.load(name).state, loader, device=device)
        if progress:
            progress(done, len(names))
    return scores


def _tally(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Per candidate and class: correct, total and summed loss; (K, N, C) logits give (K, 3, C), float64."""
    candidates, samples, classes = logits.shape
    flat = logits.reshape(candidates * samples, classes)
    loss = functional.cross_entropy(flat.float(), y.repeat(candidates), reduction="none")
    right = logits.argmax(dim=2) == y
    values = torch.stack([right.double(), torch.ones_like(right, dtype=torch.float64)], dim=1)
    values = torch.cat([values, loss.double().reshape(candidates, 1, samples)], dim=1)
    out = torch.zeros(candidates, 3, classes, dtype=torch.float64, device=logits.device)
    return out.index_add_(2, y, values)


def _scores_of(tally: torch.Tensor) -> ClassScores:
    correct, total, loss = tally.tolist()
    seen = [c for c, n in enumerate(total) if n]
    return ClassScores(
        {c: int(correct[c]) for c in seen}, {c: int(total[c]) for c in seen}, {c: loss[c] for c in seen}
    )


Predictor = Callable[[Any], list[torch.Tensor]]


def _predictor(model: nn.Module, updates: Sequence[DampeningUpdate | None], head: str | None) -> Predictor:
    """A function from inputs to one tensor of logits per update, by the cheapest way that is exact."""
    if all(u is None or u.empty for u in updates):
        return lambda x: [model(x)] * len(updates)

    def in_full(x: Any) -> list[torch.Tensor]:
        # One candidate's tensors at a time: all of them would be many models in memory.
        state = model.state_dict()
        return [_call(model, None if u is None else apply_update(state, u), x) for u in updates]

    try:
        prefix, module = find_head(model, head)
    except FisherError:
        return in_full
    bodies = _bodies(model, updates, prefix)
    if bodies is None:
        return in_full
    probe = next(i for i, u in enumerate(updates) if u is not None and not u.empty)
    exact: bool | None = None

    def by_head(x: Any) -> list[torch.Tensor]:
        nonlocal exact
        logits = None if exact is False else _through_head(model, prefix, module, bodies, x)
        if logits is not None and exact is None:
            # The features may depend on the head's weight too, where the model uses it once more.
            state = next(states[probe] for _, states in bodies if probe in states)
            exact = _same(_call(model, state, x), logits[probe])
        return logits if logits is not None and exact else in_full(x)

    return by_head


Body = tuple[StateDict | None, dict[int, StateDict | None]]
"""What some updates share (None: the model as it is), and by its number each one's whole state."""


def _bodies(model: nn.Module, updates: Sequence[DampeningUpdate | None], prefix: str) -> list[Body] | None:
    """Updates with the same erasures together; None when one changes something else before the head."""
    state, groups = model.state_dict(), dict[tuple[int, ...], Body]()
    for i, update in enumerate(updates):
        if update is None or update.empty:
            groups.setdefault((), (None, {}))[1][i] = None
            continue
        own = {n: e for n, e in update.erasures.items() if _of(e.weight) == _of(e.shift) == prefix}
        before = {n: e for n, e in update.erasures.items() if n not in own}
        at_head = DampeningUpdate(update.entries, update.threshold, update.dampening, own)
        erased = [n for e in before.values() for n in (e.weight, e.shift)]
        if any(_of(n) != prefix for n in at_head.changes) or any(_of(n) == prefix for n in erased):
            return None
        key = tuple(id(e.erasure) for e in before.values())
        if key not in groups:
            alone = DampeningUpdate({}, update.threshold, update.dampening, before)
            groups[key] = (apply_update(state, alone) if key else None, {})
        body, states = groups[key]
        # Shares all but the head's tensors.
        states[i] = apply_update(state if body is None else body, at_head)
    return list(groups.values())


def _of(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _call(model: nn.Module, state: StateDict | None, x: Any) -> torch.Tensor:
    if state is None:
        return cast(torch.Tensor, model(x))
    # Each name has its own value here, as in a checkpoint, also where the model ties them.
    return cast(torch.Tensor, torch.func.functional_call(model, dict(state), (x,), tie_weights=False))


def _through_head(
    model: nn.Module, prefix: str, head: nn.Linear, bodies: Sequence[Body], x: Any
) -> list[torch.Tensor] | None:
    """Each candidate head on its body's features; None when the head's output is not the model's."""
    out: dict[int, torch.Tensor] = {}
    at = f"{prefix}." if prefix else ""
    for body, states in bodies:
        features: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args, features=features: features.extend(args))
        try:
            logits = _call(model, body, x)
        finally:
            hook.remove()
        if len(features) != 1 or not _same(functional.linear(features[0], head.weight, head.bias), logits):
            return None
        for i, state in states.items():
            out[i] = logits
            if state is not None:
                weight, bias = state[f"{at}weight"], state.get(f"{at}bias")
                out[i] = functional.linear(features[0], weight, bias)
    return [out[i] for i in range(len(out))]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
