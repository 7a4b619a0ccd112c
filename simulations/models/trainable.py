"""The parts of a model: which layer is its head, and which of them are trained."""

from __future__ import annotations

import torch
from torch import nn

from fl_unlearn.batches import evaluating
from fl_unlearn.fisher import find_head, resolve_scope
from fl_unlearn.fisher.head import forward_with_head
from fl_unlearn.types import FisherError
from simulations.datasets.bundle import Inputs


def head_of(model: nn.Module, inputs: Inputs) -> str:
    """Name of the head that `find_head` finds, after seeing that its output is what the model returns.

    Args:
        model: Called with two blank samples; it is left as it was.
        inputs: What it is fed.

    Raises:
        FisherError: If there is none, or the model returns something else: before anything is trained.
    """
    name, head = find_head(model)
    blank = torch.zeros(2, *inputs.shape, dtype=torch.int64 if inputs.vocabulary else torch.float32)
    with evaluating(model):
        where = next(head.parameters()).device
        _, h, reason = forward_with_head(model, head, list(head.parameters()), blank.to(where))
    if h is None:
        linear = ", ".join(repr(n) for n, m in model.named_modules() if isinstance(m, nn.Linear))
        raise FisherError(
            f"the head of {type(model).__name__} was taken to be {name!r}, the last nn.Linear "
            f"registered of {linear}; it {reason}: register the layer that returns the logits last, and let "
            "the model return logits"
        )
    return name


def trains_only(model: nn.Module, what: str) -> tuple[nn.Module, ...]:
    """Let a part of a model be trained, and freeze the rest.

    Args:
        model: Its parameters' ``requires_grad`` is set.
        what: "all", "head", or parameter names or patterns, as of `fl_unlearn.fisher.resolve_scope`.

    Returns:
        The frozen layers that keep running statistics, such as batch norm: after every ``model.train()`` put
        them into eval mode, or the frozen part goes on changing. Dropout stays as the architecture has it.

    Raises:
        FisherError: If nothing in the model is called so; the model is then as it was.
    """
    before = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in before:
        p.requires_grad_(True)  # a scope has trainable parameters only
    try:
        names = set(resolve_scope(model, what))
    except Exception:
        for p, was in before:
            p.requires_grad_(was)
        raise
    named = dict(model.named_parameters(remove_duplicate=False))
    trained = {id(named[n]) for n in names}
    for p, _ in before:
        p.requires_grad_(id(p) in trained)
    if len(trained) == len(before):
        return ()
    return tuple(
        m for m in model.modules() if _averages(m) and not any(p.requires_grad for p in m.parameters())
    )


def _averages(module: nn.Module) -> bool:
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return norm and bool(getattr(module, "track_running_stats", False))
