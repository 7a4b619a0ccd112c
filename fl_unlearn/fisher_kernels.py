"""The two ways `fisher.py` computes squared gradients: a linear head in closed form, and any parameters.

Everything is a sum over samples n of (Jₙᵀ u)², with Jₙ the Jacobian of the logits of sample n by the
parameters and u a cotangent of the logits that depends on the kind of Fisher only (`cotangents`). For a head
z = W h + b the Jacobian is known, and (Jᵀ u)² = u² (h²)ᵀ for W and u² for b: no backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from .batches import check_logits, check_rows, logits_of, map_tensors, take_rows
from .types import FisherError

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 2**20  # of gradients alive at once
UNUSED, OTHER_OUTPUT = "is not called by the model", "does not return the model's output"
_METADATA = {"device", "dtype", "is_cuda", "ndim", "requires_grad", "shape"}


# --------------------------------------------------------------------------- cotangents of the logits
def residual(z: Tensor, y: Tensor) -> Tensor:
    """softmax(z) − onehot(y) for logits (N, C), labels (N,), float64, without cancellation."""
    index = y[:, None]
    others = z.double().softmax(1).scatter(1, index, 0.0)
    return others.scatter(1, index, -others.sum(1, keepdim=True))


def direction(z: Tensor, y: Tensor) -> Tensor:
    """`residual` divided by its Euclidean norm, row by row, in float64, shape (N, C).

    With r the softmax over the classes other than y, softmax(z) − onehot(y) = (1 − p_y) (r − onehot(y)), so
    the norm's small factor cancels before anything can underflow: confident samples keep their direction
    however small their gradient is. With a single class there is no gradient, and the row is zero.
    """
    if z.shape[1] == 1:
        return torch.zeros_like(z, dtype=torch.float64)
    index = y[:, None]
    e: Tensor = z.double().scatter(1, index, -torch.inf).softmax(1).scatter(1, index, -1.0)
    return e / e.square().sum(1, keepdim=True).sqrt()


def cotangents(kind: str, z: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The u, each of shape (N, C) in float64, whose (Jᵀ u)² add up to a sample's share; not for "batch"."""
    if kind == "empirical":
        yield residual(z, y)
    elif kind == "normalized":
        yield direction(z, y)
    else:
        p = z.double().softmax(1)
        for c in range(z.shape[1]):
            yield p[:, c : c + 1].sqrt() * residual(z, torch.full_like(y, c))


def squared_cotangents(kind: str, z: Tensor, y: Tensor) -> Tensor:
    """Element-wise sum of the squares of `cotangents`, shape (N, C): all that a head needs.

    For "true" the sum over c of p_c (p_k − 1[k = c])² is p_k² (1 − p_k) + p_k (1 − p_k)² = p_k (1 − p_k).
    """
    if kind != "true":
        return next(cotangents(kind, z, y)).square()
    top = z.argmax(1)
    p = z.double().softmax(1)
    # 1 − p cancels only for the largest p; there it is the sum of the others.
    return p * (1.0 - p).scatter(1, top[:, None], -residual(z, top).gather(1, top[:, None]))


# --------------------------------------------------------------------------- sums by group
def split_groups(groups: Tensor) -> list[tuple[int, Tensor]]:
    """Each group present in ``groups`` (N,), with the rows that belong to it."""
    present, sizes = torch.unique(groups, return_counts=True)
    rows = torch.split(groups.argsort(stable=True), sizes.tolist())
    return list(zip(present.tolist(), rows, strict=True))


class GroupSums:
    """Float64 accumulators: one tensor per group and distinct parameter, made when a group first occurs.

    ``names`` are those of the parameters asked for; the names of one tied parameter share one accumulator.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        named = dict(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        for n in names:
            first.setdefault(id(named[n]), n)
        self.primary = {n: first[id(named[n])] for n in names}
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in first.values()}
        self.sums: dict[int, dict[str, Tensor]] = {}
        self.counts: dict[int, int] = {}

    def of(self, group: int, count: int = 0) -> dict[str, Tensor]:
        """The accumulators of ``group``, its count raised by ``count``."""
        self.counts[group] = self.counts.get(group, 0) + count
        if group not in self.sums:
            self.sums[group] = {
                n: torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
                for n, p in self.parameters.items()
            }
        return self.sums[group]

    def result(self, dtype: torch.dtype) -> dict[int, dict[str, Tensor]]:
        """The sums on the CPU in ``dtype``, groups ascending, under every name asked for."""
        moved = {g: {n: t.to("cpu", dtype) for n, t in self.sums[g].items()} for g in sorted(self.sums)}
        return {g: {n: sums[p] for n, p in self.primary.items()} for g, sums in moved.items()}


# --------------------------------------------------------------------------- one forward pass
class _Uses(TorchFunctionMode):
    """Counts the torch calls that take one of some parameters, so that no use of a head goes unseen."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.count = {id(p): 0 for p in parameters}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(getattr(func, "__self__", None), "__name__", "") not in _METADATA:
            for a in (*args, *kwargs.values()):
                if id(a) in self.count:
                    self.count[id(a)] += 1
        return func(*args, **kwargs)


def head_problem(model: nn.Module, head: nn.Linear, parameters: Sequence[nn.Parameter]) -> str | None:
    """Why the closed form does not give these parameters' gradients, as far as the modules tell, or None."""
    own = {id(p) for p in head.parameters(recurse=False)}
    if not all(id(p) in own for p in parameters):
        return "does not own every parameter in scope"
    if type(head).forward is not nn.Linear.forward or head.weight is not dict(head.named_parameters()).get(
        "weight"
    ):
        return "is not a plain linear layer"
    for module in model.modules():
        if module is not head and any(id(p) in own for p in module.parameters(recurse=False)):
            return "shares its parameters with another module"
    return None


def forward_with_head(
    model: nn.Module, head: nn.Linear, parameters: Sequence[nn.Parameter], x: Any
) -> tuple[Tensor, Tensor | None, str]:
    """Logits of a batch and the head's input, both without a graph.

    Returns:
        The logits z; the head's input h in float64, shape (N, d), or None when the closed form does not hold;
        and then why: `UNUSED`, `OTHER_OUTPUT` or other words that go on from "the head".
    """
    calls: list[tuple[Tensor, Tensor]] = []

    # Copies: a later operation in place would alter both what is recorded and what it is compared with.
    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        h = args[0] if args else kwargs["input"]
        calls.append((h.detach().to(torch.float64, copy=True), out.detach().clone()))

    handle = head.register_forward_hook(record, with_kwargs=True, prepend=True)
    try:
        with _Uses(parameters) as uses:
            z = logits_of(model, x)
    finally:
        handle.remove()
    if not calls:
        return z, None, UNUSED
    h, out = calls[0]
    if len(calls) > 1 or any(n != 1 for n in uses.count.values()):
        return z, None, "is used more than once"
    if h.ndim != 2:
        return z, None, f"gets input of shape {list(h.shape)} instead of (N, features)"
    if out.shape != z.shape or not torch.equal(out, z):
        return z, None, OTHER_OUTPUT
    return z, h, ""


def add_head(sums: GroupSums, head: nn.Linear, kind: str, h: Tensor, z: Tensor, y: Tensor, g: Tensor) -> None:
    """Add one batch's squared gradients by a head's weight, bias or both, in closed form.

    Shapes: the head's input h (N, d), float64; logits z (N, C); labels y and groups g (N,).
    """
    names = {id(p): n for n, p in sums.parameters.items()}
    weight = names.get(id(head.weight))
    bias = None if head.bias is None else names.get(id(head.bias))
    mini_batches = kind == "batch"
    left = residual(z, y) if mini_batches else squared_cotangents(kind, z, y)
    right = h if mini_batches else h.square()
    for group, rows in split_groups(g):
        a = left[rows]
        total = sums.of(group, 1 if mini_batches else len(rows))
        if weight is not None:
            outer = a.T @ right[rows]
            total[weight] += (outer / len(rows)).square_() if mini_batches else outer
        if bias is not None:
            total[bias] += a.mean(0).square() if mini_batches else a.sum(0)


# --------------------------------------------------------------------------- any parameters
class GeneralPath:
    """Squared gradients by any parameters, sample by sample with ``torch.func``, in chunks.

    Where the model cannot be vectorised, it goes over to one backward pass per sample, and says so once.

    Args:
        model: The model; it is called with its own parameters' values, none of them changed.
        sums: What to add to; it names the parameters.
        chunk_size: Samples differentiated at once; None: as many as keep their gradients within 256 MB.
    """

    def __init__(self, model: nn.Module, sums: GroupSums, chunk_size: int | None) -> None:
        self.model = model
        self.sums = sums
        self.chosen = {n: p.detach() for n, p in sums.parameters.items()}
        chosen = {id(p) for p in sums.parameters.values()}
        self.rest = {n: p.detach() for n, p in model.named_parameters() if id(p) not in chosen}
        numel = sum(p.numel() for p in self.chosen.values())
        self.chunk = chunk_size or max(1, CHUNK_BYTES // (4 * max(1, numel)))
        self.vectorised = True
        # cuDNN's recurrent kernels have no backward pass outside training mode.
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())

    def add(self, kind: str, x: Any, z: Tensor, y: Tensor, groups: Tensor) -> None:
        """Add one batch: inputs ``x`` (N rows in every tensor), logits (N, C), labels (N,), groups (N,)."""
        with torch.backends.cudnn.flags(enabled=False) if self.recurrent else nullcontext():
            if kind == "batch":
                self._add_mini_batches(x, z, y, groups)
                return
            for rows in torch.split(torch.arange(len(y), device=y.device), self.chunk):
                parts = split_groups(groups[rows])
                for group, part in parts:
                    self.sums.of(group, len(part))
                xs = take_rows(x, rows)
                for u in cotangents(kind, z[rows], y[rows]):
                    self._add_squares(self._per_sample(xs, u), parts)

    def _add_squares(self, grads: dict[str, Tensor], parts: list[tuple[int, Tensor]]) -> None:
        for group, rows in parts:
            total = self.sums.of(group)
            for name, g in grads.items():
                total[name] += g[rows.to(g.device)].double().square_().sum(0)

    def _add_mini_batches(self, x: Any, z: Tensor, y: Tensor, groups: Tensor) -> None:
        e = residual(z, y)
        for group, rows in split_groups(groups):
            total = self.sums.of(group, 1)
            for name, g in self._gradient(take_rows(x, rows), e[rows] / len(rows)).items():
                total[name] += g.double().square_()

    def _scalar(self, chosen: dict[str, Tensor], x: Any, u: Tensor) -> Tensor:
        z: Tensor = functional_call(self.model, {**self.rest, **chosen}, (x,))
        return (u * z.to(u.dtype)).sum()

    def _gradient(self, x: Any, u: Tensor) -> dict[str, Tensor]:
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
        rows = [self._gradient(take_rows(x, slice(i, i + 1)), u[i : i + 1]) for i in range(len(u))]
        return {n: torch.stack([r[n] for r in rows]) for n in self.chosen}

    def _scalar_of_one(self, chosen: dict[str, Tensor], x: Any, u: Tensor) -> Tensor:
        return self._scalar(chosen, map_tensors(lambda t: t.unsqueeze(0), x), u)


@dataclass(eq=False)
class Computation:
    """Adds batches up, in closed form while that holds and by the general path from then on.

    Args:
        model: The model.
        names: The parameters in scope.
        kind: Kind of Fisher.
        head: Name and module of what should give the logits, or None.
        strict: Refuse a head that does not give the model's output, instead of taking the general path.
        chunk_size: See `GeneralPath`.
    """

    model: nn.Module
    names: Sequence[str]
    kind: str
    head: tuple[str, nn.Linear] | None
    strict: bool
    chunk_size: int | None

    def __post_init__(self) -> None:
        self.sums = GroupSums(self.model, self.names)
        self.general = GeneralPath(self.model, self.sums, self.chunk_size)
        self.parameters = list(self.sums.parameters.values())
        self.closed = self.head is not None
        if self.head is not None:
            self._judge(head_problem(self.model, self.head[1], self.parameters), self.head[0], "the model")

    def add(self, x: Any, y: Tensor, groups: Tensor, classes: int | None, where: str) -> Tensor:
        """Add one batch, of at least one row; returns its logits (N, C), without a graph."""
        if self.closed and self.head is not None:
            name, head = self.head
            z, h, reason = forward_with_head(self.model, head, self.parameters, x)
            check_logits(z, y, classes, where)
            if h is not None:
                add_head(self.sums, head, self.kind, h, z, y, groups)
                return z
            self._judge(reason, name, where)
        else:
            z = logits_of(self.model, x)
            check_logits(z, y, classes, where)
        check_rows(x, len(y), where)
        self.general.add(self.kind, x, z, y, groups)
        return z

    def _judge(self, reason: str | None, name: str, where: str) -> None:
        if reason is None:
            return
        if self.strict and reason in (UNUSED, OTHER_OUTPUT):
            raise FisherError(
                f"{where}: the head '{name}' {reason}; name the layer that returns the logits with head=..., "
                "let the model return logits (no softmax after the head), or use a scope of parameter names"
            )
        self.closed = False
        if self.strict:
            log.info("the Fisher of head '%s' takes backward passes: it %s", name, reason)
