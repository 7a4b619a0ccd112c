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

from fl_unlearn.batches import to_device, unpack
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.fisher import find_head
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

    Updates that touch only the head cost one matrix product each: the features are computed once.

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
    scores = [ClassScores() for _ in updates]
    model.eval()
    try:
        with torch.no_grad():
            predict = _predictor(model, updates, head)
            for batch in loader:
                x, y = unpack(batch)
                if y.numel() == 0:
                    continue
                y = y.to(device)
                for i, logits in enumerate(predict(to_device(x, device))):
                    scores[i] = scores[i] + _tally(logits, y)
    finally:
        for module, training in modes.items():
            module.training = training
    return scores


def score_state(
    model: nn.Module, state: StateDict, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> ClassScores:
    """Load ``state`` into ``model`` and score it."""
    model.load_state_dict(dict(state))
    return score(model, loader, device=device)


def _tally(logits: torch.Tensor, y: torch.Tensor) -> ClassScores:
    right = logits.argmax(dim=1) == y
    loss = functional.cross_entropy(logits.float(), y, reduction="none").double()
    out = ClassScores()
    for label in sorted(set(y.tolist())):
        mask = y == label
        out.total[label] = int(mask.sum())
        out.correct[label] = int(right[mask].sum())
        out.loss[label] = float(loss[mask].sum())
    return out


Predictor = Callable[[Any], list[torch.Tensor]]


def _predictor(model: nn.Module, updates: Sequence[DampeningUpdate | None], head: str | None) -> Predictor:
    """A function from inputs to one tensor of logits per update, by the cheapest way that is exact."""
    names = {n for u in updates if u is not None for n in u.entries}
    if not names:
        return lambda x: [model(x)] * len(updates)
    states = [None if u is None else apply_update(model.state_dict(), u) for u in updates]
    try:
        prefix, module = find_head(model, head)
    except FisherError:
        return lambda x: [_call(model, state, x) for state in states]
    if any(n.rpartition(".")[0] != prefix for n in names):
        return lambda x: [_call(model, state, x) for state in states]
    return lambda x: _through_head(model, prefix, module, states, x)


def _call(model: nn.Module, state: StateDict | None, x: Any) -> torch.Tensor:
    if state is None:
        return cast(torch.Tensor, model(x))
    return cast(torch.Tensor, torch.func.functional_call(model, dict(state), (x,)))


def _through_head(
    model: nn.Module, prefix: str, head: nn.Linear, states: Sequence[StateDict | None], x: Any
) -> list[torch.Tensor]:
    """Run the features once and each candidate head on them, when the head's output is the model's."""
    features: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    try:
        logits = cast(torch.Tensor, model(x))
    finally:
        hook.remove()
    if len(features) != 1 or not _same(functional.linear(features[0], head.weight, head.bias), logits):
        return [_call(model, state, x) for state in states]
    return [
        logits
        if state is None
        else functional.linear(features[0], state[f"{prefix}.weight"], state.get(f"{prefix}.bias"))
        for state in states
    ]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
