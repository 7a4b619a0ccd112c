"""Squared gradients by a linear head in closed form: one forward pass, no backward.

For a head z = W h + b the Jacobian is known, and (Jᵀ u)² = u² (h²)ᵀ for W and u² for b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fl_unlearn.batches import logits_of

from .cotangents import residual, squared_cotangents
from .groups import GroupSums, split_groups

UNUSED, OTHER_OUTPUT = "is not called by the model", "does not return the model's output"
_METADATA = {"device", "dtype", "is_cuda", "ndim", "requires_grad", "shape"}


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
