"""Which part of a model is trained: for transfer the head alone, of a model that somebody else trained."""

from __future__ import annotations

from torch import nn

from fl_unlearn.fisher import resolve_scope


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
