"""The ways to a Fisher diagonal that the benchmark compares, each over one batch.

Every method is a function of (model, x, y) that prepares what it needs and returns what is timed: a function
that gives the sums by parameter name, or None where there is nothing to compare. All of "empirical" kind but
"batch", which squares the gradient of the batch's mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fl_unlearn import fisher_diagonal
from fl_unlearn.types import REST

Sums = dict[str, Tensor]
Run = Callable[[], Sums | None]
CHUNK_BYTES = 256 * 2**20  # gradients that torch.func may hold at once


class UnsupportedError(Exception):
    """A library cannot do this network; the message says why."""


def _forward(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def _forward_backward(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    parameters = list(model.parameters())

    def run() -> None:
        torch.autograd.grad(cross_entropy(model(x), y), parameters)

    return run


def _batch(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    names = dict(model.named_parameters())

    def run() -> Sums:
        grads = torch.autograd.grad(cross_entropy(model(x), y), list(names.values()))
        return {n: g.square() for n, g in zip(names, grads, strict=True)}

    return run


def _ours(scope: str, keep: tuple[int, ...] | None) -> Callable[[nn.Module, Tensor, Tensor], Run]:
    def prepare(model: nn.Module, x: Tensor, y: Tensor) -> Run:
        def run() -> Sums | None:
            fisher = fisher_diagonal(model, [(x, y)], kind="empirical", scope=scope, keep_classes=keep)
            return fisher.sums.get(REST)

        return run

    return prepare


def _torch_func(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    numel = sum(p.numel() for p in parameters.values())
    chunk = max(1, CHUNK_BYTES // (4 * numel))

    def loss(values: Sums, one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (one[None],)), label[None])

    per_sample: Callable[..., Sums] = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> Sums:
        sums = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for xs, ys in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
            for n, g in per_sample(parameters, xs, ys).items():
                sums[n] += g.square_().sum(0)
        return sums

    return run


def _backpack(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model = extend(copy.deepcopy(model), use_converter=True).eval()
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> Sums:
        model.zero_grad()
        with backpack(SumGradSquared()):
            torch.autograd.backward(loss(model(x), y))
        return {n: vars(p)["sum_grad_squared"] for n, p in model.named_parameters()}

    return run


def _opacus(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from opacus import GradSampleModule
    from opacus.validators.lstm import fix

    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UnsupportedError("no batch normalisation, not even in eval mode")
    model = copy.deepcopy(model).train()  # it records nothing in eval mode; no network here has dropout
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LSTM):
                setattr(module, name, fix(child).to(x.device))
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)

    def run() -> Sums:
        wrapped.zero_grad()
        torch.autograd.backward(cross_entropy(wrapped(x), y, reduction="sum"))
        return {
            n.removeprefix("_module."): p.grad_sample.square().sum(0) for n, p in wrapped.named_parameters()
        }

    return run


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    prepare: Callable[[nn.Module, Tensor, Tensor], Run]
    exact: bool = False
    """Whether it gives what ``ours_all`` gives."""


METHODS = {
    "forward": Method("forward", _forward),
    "forward_backward": Method("forward + backward", _forward_backward),
    "ours_head": Method("fl-unlearn, head", _ours("head", ())),
    "ours_all": Method("fl-unlearn, all layers", _ours("all", ())),
    "ours_classes": Method("fl-unlearn, all layers, a sum per class", _ours("all", None)),
    "torch_func": Method("torch.func, vmap of grad", _torch_func, exact=True),
    "backpack": Method("BackPACK, SumGradSquared", _backpack, exact=True),
    "opacus": Method("Opacus, squares of grad_sample", _opacus, exact=True),
    "batch": Method("square of the batch's mean gradient", _batch),
}
"""By key, in the order of the table."""
