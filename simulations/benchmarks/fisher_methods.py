"""The ways to a Fisher diagonal that the benchmark compares, each over a few batches.

Every method is a function of (model, data) that prepares what it needs and returns what is timed: a function
that gives the sums over all batches by parameter name, or None where there is nothing to compare. All are of
kind "empirical" but "batch", which squares the gradient of each batch's mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fl_unlearn import fisher_diagonal
from fl_unlearn.types import REST
from simulations.benchmarks.fisher_cases import Batch

Sums = dict[str, Tensor]
Run = Callable[[], Sums | None]
Data = Sequence[Batch]
CHUNK_BYTES = 256 * 2**20  # gradients that torch.func may hold at once


class UnsupportedError(Exception):
    """A library cannot do this network; the message says why."""


def _forward(model: nn.Module, data: Data) -> Run:
    def run() -> None:
        with torch.no_grad():
            for x, _ in data:
                model(x)

    return run


def _forward_backward(model: nn.Module, data: Data) -> Run:
    parameters = list(model.parameters())

    def run() -> None:
        for x, y in data:
            torch.autograd.grad(cross_entropy(model(x), y), parameters)

    return run


def _batch(model: nn.Module, data: Data) -> Run:
    parameters = list(model.parameters())

    def run() -> None:
        sums = [torch.zeros_like(p) for p in parameters]
        for x, y in data:
            grads = torch.autograd.grad(cross_entropy(model(x), y), parameters)
            for total, g in zip(sums, grads, strict=True):
                total.addcmul_(g, g)

    return run


def _ours(scope: str, keep: tuple[int, ...] | None) -> Callable[[nn.Module, Data], Run]:
    def prepare(model: nn.Module, data: Data) -> Run:
        def run() -> Sums | None:
            fisher = fisher_diagonal(model, data, kind="empirical", scope=scope, keep_classes=keep)
            return fisher.sums.get(REST)

        return run

    return prepare


def _ours_once(model: nn.Module, data: Data) -> Run:
    return _ours("all", ())(model, data[:1])


def _torch_func(model: nn.Module, data: Data) -> Run:
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    numel = sum(p.numel() for p in parameters.values())
    chunk = max(1, CHUNK_BYTES // (4 * numel))

    def loss(values: Sums, one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (one[None],)), label[None])

    per_sample: Callable[..., Sums] = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> Sums:
        sums = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for x, y in data:
            for xs, ys in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
                for n, g in per_sample(parameters, xs, ys).items():
                    sums[n] += g.square().sum(0)
        return sums

    return run


def _backpack(model: nn.Module, data: Data) -> Run:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model = extend(copy.deepcopy(model), use_converter=True).eval()
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> Sums:
        sums = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for x, y in data:
            model.zero_grad()
            with backpack(SumGradSquared()):
                torch.autograd.backward(loss(model(x), y))
            for n, p in model.named_parameters():
                sums[n] += vars(p)["sum_grad_squared"]
        return sums

    return run


def _opacus(model: nn.Module, data: Data) -> Run:
    from opacus import GradSampleModule
    from opacus.validators.lstm import fix

    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UnsupportedError("no batch normalisation, not even in eval mode")
    model = copy.deepcopy(model).train()  # it records nothing in eval mode; no network here has dropout
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LSTM):
                setattr(module, name, fix(child).to(data[0][0].device))
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)

    def run() -> Sums:
        sums = {n: torch.zeros_like(p) for n, p in wrapped.named_parameters()}
        for x, y in data:
            wrapped.zero_grad()
            torch.autograd.backward(cross_entropy(wrapped(x), y, reduction="sum"))
            for n, p in wrapped.named_parameters():
                sums[n] += p.grad_sample.square().sum(0)
        return {n.removeprefix("_module."): total for n, total in sums.items()}

    return run


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: Its name.
        prepare: See the module.
        exact: Whether it gives what ``ours_all`` gives.
        batches: How many it goes over; None: all.
    """

    title: str
    prepare: Callable[[nn.Module, Data], Run]
    exact: bool = False
    batches: int | None = None


METHODS = {
    "forward": Method("forward", _forward),
    "forward_backward": Method("forward + backward", _forward_backward),
    "ours_head": Method("fl-unlearn, head", _ours("head", ())),
    "ours_all": Method("fl-unlearn, all layers", _ours("all", ())),
    "ours_once": Method("fl-unlearn, all layers, one batch only", _ours_once, batches=1),
    "ours_classes": Method("fl-unlearn, all layers, sums per class", _ours("all", None)),
    "torch_func": Method("torch.func, vmap of grad", _torch_func, exact=True),
    "backpack": Method("BackPACK, SumGradSquared", _backpack, exact=True),
    "opacus": Method("Opacus, squares of grad_sample", _opacus, exact=True),
    "batch": Method("square of the batch's mean gradient", _batch),
}
"""By key, in the order of the table."""
