"""Compares a model that is taken apart with itself, and with what a watcher of ``linear`` sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fl_unlearn.fisher_decompose import decomposed
from fl_unlearn.fisher_recurrent import linear_elsewhere

Forward = Callable[..., Any]
D = torch.float64


class Watch(TorchFunctionMode):
    """Keeps input, weight, bias and output of every ``linear``, and the names of what else takes a parameter.

    ``unseen`` are the parameters that no ``linear`` took.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor | None, Tensor]] = []
        self.others: set[str] = set()
        self.unseen: list[nn.Parameter] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (functional.linear, linear_elsewhere):
            self.seen.append((*args, *[None] * (3 - len(args)), out))
        elif func.__name__ != "__get__" and any(isinstance(t, nn.Parameter) for t in tensors((args, kwargs))):
            self.others.add(func.__name__)
        return out


def tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for v in x:
            yield from tensors(v)
    elif isinstance(x, dict):
        yield from tensors(list(x.values()))


def value_of(out: Any) -> Tensor:
    """One number that depends on everything that was returned."""
    torch.manual_seed(3)
    return sum((t.double() * torch.randn(t.shape, dtype=D)).sum() for t in tensors(out))


def compare(model: nn.Module, forward: Forward, inputs: list[Tensor], rtol: float = 1e-9) -> Watch:
    """Outputs, gradients by inputs and by parameters; and the parameters' as a watcher can compute them."""
    by = [t for t in inputs if t.requires_grad] + list(model.parameters())
    want = forward()
    want_grads = torch.autograd.grad(value_of(want), by, materialize_grads=True, allow_unused=True)
    with Watch() as watch, decomposed(model):
        got = forward()
    value = value_of(got)
    close = {"rtol": rtol, "atol": rtol}
    torch.testing.assert_close(got, want, **close)
    got_grads = torch.autograd.grad(value, by, materialize_grads=True, allow_unused=True, retain_graph=True)
    torch.testing.assert_close(got_grads, want_grads, **close)
    of_outputs = torch.autograd.grad(
        value, [out for *_, out in watch.seen], materialize_grads=True, allow_unused=True
    )
    grads: dict[int, Tensor] = {}
    for (x, weight, bias, _), g in zip(watch.seen, of_outputs, strict=True):
        for parameter, grad in (
            (weight, torch.einsum("...o,...i->oi", g, x)),
            (bias, g.flatten(0, -2).sum(0)),
        ):
            if parameter is not None:
                _add(grads, model, parameter, grad.detach())
    for p, want_grad in zip(by, want_grads, strict=True):
        if id(p) in grads:
            torch.testing.assert_close(grads[id(p)], want_grad, **close)
    watch.unseen = [p for p in model.parameters() if id(p) not in grads]
    return watch


def _add(grads: dict[int, Tensor], model: nn.Module, parameter: Tensor, grad: Tensor) -> None:
    """To a parameter, or to the rows of it that ``parameter`` is a view of."""
    for p in model.parameters():
        if p.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            first = (parameter.storage_offset() - p.storage_offset()) // p.stride(0)
            grads.setdefault(id(p), torch.zeros_like(p))[first : first + len(parameter)] += grad
