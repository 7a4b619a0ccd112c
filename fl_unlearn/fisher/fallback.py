"""Per-sample gradients by ``torch.func``: the slow way, for parameters that have no formula."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_unlearn.batches import map_tensors, take_rows

from .cotangents import cotangents, residual
from .groups import GroupSums, split_groups

log = logging.getLogger(__name__)


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """Put parameters back, of which ``functional_call`` forgets some.

    These are those of a module with two names, and the list of its weights that a recurrent layer keeps:
    without them the layer would go on computing, but learn nothing any more.
    """
    kept = [(m, dict(m._parameters), list(vars(m).get("_flat_weights", ()))) for m in model.modules()]
    try:
        yield
    finally:
        for module, parameters, weights in kept:
            module._parameters.update(parameters)
            if weights:
                vars(module)["_flat_weights"] = weights


class GeneralPath:
    """Squared gradients by some parameters, sample by sample with ``torch.func``, in chunks.

    Where the model cannot be vectorised, it goes over to one backward pass per sample, and says so once.

    Args:
        model: The model; it is called with its own parameters' values, none of them changed.
        sums: What to add to.
        memory: Bytes that gradients may take; half of it is left to the model's activations.
    """

    def __init__(self, model: nn.Module, sums: GroupSums, memory: int) -> None:
        self.model = model
        self.sums = sums
        self.memory = memory
        self.vectorised = True
        # cuDNN's recurrent kernels have no backward pass outside training mode.
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
        self.restrict(sums.parameters)

    def restrict(self, names: Collection[str]) -> None:
        """Serve only these parameters, of those that the sums have."""
        self.chosen = {n: p.detach() for n, p in self.sums.parameters.items() if n in names}
        chosen = {id(self.sums.parameters[n]) for n in self.chosen}
        self.rest = {n: p.detach() for n, p in self.model.named_parameters() if id(p) not in chosen}
        sizes = [p.numel() for p in self.chosen.values()]
        # A chunk's gradients in float32, and those by one parameter in float64 as well.
        self.chunk = max(1, self.memory // (2 * (4 * sum(sizes) + 8 * max(sizes, default=0) + 1)))

    def add(
        self, kind: str, x: Any, z: Tensor, y: Tensor, groups: Tensor, drawn: Tensor | None = None
    ) -> None:
        """Add one batch: inputs ``x`` (N rows in every tensor), logits (N, C), labels (N,), groups (N,).

        Counts stay. ``drawn`` is as for `cotangents`.
        """
        with self.differentiable():
            for rows in torch.split(torch.arange(len(y), device=y.device), self.chunk):
                parts = split_groups(groups[rows])
                xs = take_rows(x, rows)
                labels = None if drawn is None else drawn[rows]
                for u in cotangents(kind, z[rows], y[rows], labels):
                    self._add_squares(self._per_sample(xs, u), parts)

    def add_mini_batches(self, x: Any, z: Tensor, y: Tensor, groups: Tensor) -> None:
        """Add the squared mean gradient of each group in a batch, for kind "batch"; counts stay."""
        e = residual(z, y)
        with self.differentiable():
            for group, rows in split_groups(groups):
                total = self.sums.of(group)
                for name, g in self.gradient(take_rows(x, rows), e[rows] / len(rows)).items():
                    total[name] += g.double().square()

    def differentiable(self) -> AbstractContextManager[None]:
        """Where backward passes through every module work."""
        return torch.backends.cudnn.flags(enabled=False) if self.recurrent else nullcontext()

    def _add_squares(self, grads: dict[str, Tensor], parts: list[tuple[int, Tensor]]) -> None:
        for group, rows in parts:
            total = self.sums.of(group)
            for name, g in grads.items():
                total[name] += g[rows.to(g.device)].double().square_().sum(0)

    def _scalar(self, chosen: dict[str, Tensor], x: Any, u: Tensor) -> Tensor:
        with _parameters_kept(self.model):
            z: Tensor = functional_call(self.model, {**self.rest, **chosen}, (x,))
        return (u * z.to(u.dtype)).sum()

    def gradient(self, x: Any, u: Tensor) -> dict[str, Tensor]:
        """Jᵀ u summed over the rows of ``x``; zero for a parameter that the model does not use."""
        chosen = {n: p.detach().requires_grad_() for n, p in self.chosen.items()}
        with torch.enable_grad():
            value = self._scalar(chosen, x, u)
        if not value.requires_grad:
            return {n: torch.zeros_like(p) for n, p in self.chosen.items()}
        grads = torch.autograd.grad(value, list(chosen.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(chosen, grads, strict=True))

    def _per_sample(self, x: Any, u: Tensor) -> dict[str, Tensor]:
        """Jᵀ u of each row: shape (N, *parameter's shape)."""
        if self.vectorised:
            try:
                with (
                    torch.no_grad()
                ):  # keeps the outer autograd from recording what torch.func differentiates
                    one: Callable[..., Any] = vmap(grad(self._scalar_of_one), in_dims=(None, 0, 0))
                    out: dict[str, Tensor] = one(self.chosen, x, u)
                return out
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as e:  # whatever a model raises under vmap, it may still run sample by sample
                self.vectorised = False
                log.warning("per-sample gradients one at a time, which is slow: vmap failed with %.300s", e)
        rows = [self.gradient(take_rows(x, slice(i, i + 1)), u[i : i + 1]) for i in range(len(u))]
        return {n: torch.stack([r[n] for r in rows]) for n in self.chosen}

    def _scalar_of_one(self, chosen: dict[str, Tensor], x: Any, u: Tensor) -> Tensor:
        return self._scalar(chosen, map_tensors(lambda t: t.unsqueeze(0), x), u)
