"""Sees every use of chosen parameters in a forward pass, wherever in the model it is.

A `Recorder` is active while the model is called. It looks at each torch function that is given a parameter,
or something derived from one. Functions of parameters and constants alone give derived values; a function of
samples as well is a use, whose inputs are kept until the gradient of its output is known, if `FUNCTIONS` has
a formula for it, and otherwise a reason to refuse its parameters.

Which dimension of a tensor is the samples' is told by what the same call had in a pass of another number of
rows, so that nothing has to be assumed about layouts. Parameters need no gradient during the pass: the
first use starts the graph, and no gradient by a weight is computed but as each sample's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .batches import map_tensors, tensors_in
from .fisher_combine import ReshapedUse
from .fisher_functions import FUNCTIONS, Claim
from .fisher_uses import Use
from .types import FisherError

Arrived = Callable[[Sequence["Recorded"], Tensor], None]
"""Takes the uses of one call, and the gradient of the call's output."""


class Geometry(NamedTuple):
    """Where a view lies in the memory of its parameter."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class SampleDim(NamedTuple):
    """A dimension that holds the samples, each as ``fold`` neighbouring entries."""

    dim: int
    fold: int


class Call(NamedTuple):
    """Shapes of the tensors that one call of a torch function was given and gave."""

    function: Any
    given: tuple[torch.Size, ...]
    gave: tuple[torch.Size, ...]


@dataclass
class Pass:
    """All calls in one forward pass that gave tensors, in order."""

    rows: int
    calls: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Recorded:
    """One use of a parameter, or of what was derived from some.

    Attributes:
        names: The parameters.
        value: What was used: the parameter, or the derived value with its graph.
        geometry: Where it lies in its parameter, or None if it is no view of one.
        claim: Its formula.
        inputs: What the formula needs, without a graph.
        versions: Of the inputs, to see changes in place.
        dims: The samples' dimension of the output, then of each input.
        function: Name of the function.
    """

    names: tuple[str, ...]
    value: Tensor
    geometry: Geometry | None
    claim: Claim
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    dims: tuple[SampleDim, ...]
    function: str

    def uses(self, g: Tensor, rows: int, weights: Tensor | None) -> list[Use]:
        """The use as formulas take it, once the gradient of the output is known; mostly one.

        Args:
            g: Gradient by the output.
            rows: Number of samples.
            weights: Factor of each sample's gradient, shape (rows,), or None.

        Raises:
            FisherError: If an input was changed in place since.
        """
        if any(x._version != version for x, version in zip(self.inputs, self.versions, strict=True)):
            raise FisherError(
                f"an input of {self.function} with {', '.join(map(repr, self.names))} was changed in place "
                "after it was used, so its gradient is lost; use an operation that is not in place there"
            )
        tensors = zip((g, *self.inputs), self.dims, strict=True)
        g, *xs = (_samples_first(t, d, rows) for t, d in tensors)
        if weights is not None:
            g = g.to(weights.dtype) * weights.view(-1, *(1,) * (g.ndim - 1))
            xs = [x.to(torch.promote_types(x.dtype, g.dtype)) if x.is_floating_point() else x for x in xs]
        make, (dim, fold) = self.claim.make, self.dims[0]
        if self.claim.aligned:
            shape = tuple(self.value.shape)
            full = (1,) * (g.ndim - (fold > 1) - len(shape)) + shape
            return [ReshapedUse(make(*xs, g, full[:dim] + full[dim + 1 :]), shape)]
        if self.claim.folds or fold == 1:
            return [make(*xs, g)]
        return [make(*(x[:, j] for x in xs), g[:, j]) for j in range(fold)]


class _Start(torch.autograd.Function):
    """Makes a tensor part of a graph without a copy; nothing flows on from it."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, seed: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _Tracked(NamedTuple):
    value: Tensor  # held, so that its id stays its own
    names: tuple[str, ...]


class Recorder(TorchFunctionMode):
    """Records one forward pass, under ``with``; see the module's docstring.

    Args:
        parameters: Those to follow, none of which requires a gradient now.
        rows: Number of samples in the pass.
        other: A pass over another number of them, or None: then only `calls` are recorded.

    Attributes:
        calls: This pass, as ``other`` is for another.
        leaves: Where the graphs of derived values begin, by parameter.
        uses: By parameter, in order of the calls.
        refused: Parameters that have a use without a formula, and why.
        seed: What every graph begins at: differentiate by it to make all gradients arrive.
        arrived: What to call with them; to be set before.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rows: int, other: Pass | None = None) -> None:
        super().__init__()
        followed = parameters if other else {}
        self.leaves = {n: p.detach().requires_grad_() for n, p in followed.items()}
        self.tracked = {id(p): _Tracked(p, (n,)) for n, p in followed.items()}
        self.parameters = followed
        self.calls = Pass(rows)
        self.other = other
        self.uses: dict[str, list[Recorded]] = {n: [] for n in followed}
        self.refused: dict[str, str] = {}
        self.seed = torch.zeros((), requires_grad=True)
        self.arrived: Arrived | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        shapes = tuple(t.shape for t in given)
        # Where the model wants no gradient, none reaches its parameters, and nothing is to be done.
        if torch.is_grad_enabled() and any(id(t) in self.tracked for t in given):
            out = self._follow(func, args, kwargs, given)
        else:
            out = func(*args, **kwargs)
        gave = tuple(t.shape for t in tensors_in((out,)))
        if gave:
            self.calls.calls.append(Call(func, shapes, gave))
        return out

    def complete(self) -> None:
        """After the forward pass: refuse everything if it does not compare with the other pass."""
        if self.other is not None and len(self.calls.calls) != len(self.other.calls):
            self.refused = dict.fromkeys(self.leaves, "the model's steps depend on the data or their number")

    def _refuse(self, names: Iterable[str], reason: str) -> None:
        for n in names:
            self.refused.setdefault(n, reason)

    # ----------------------------------------------------------------- one call
    def _follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Tensor]) -> Any:
        at, what = len(self.calls.calls), getattr(func, "__name__", repr(func))
        names = tuple(
            dict.fromkeys(n for t in given if id(t) in self.tracked for n in self.tracked[id(t)].names)
        )
        other = self.other.calls[at] if self.other and at < len(self.other.calls) else None
        if other is not None and (other.function != func or len(other.given) != len(given)):
            other = None
        constant = all(
            id(t) in self.tracked or (other is not None and t.shape == other.given[i] and not t.requires_grad)
            for i, t in enumerate(given)
        )
        change = self._with_graph if constant else self._without_graph
        out = func(*map_tensors(change, tuple(args)), **map_tensors(change, dict(kwargs)))
        if constant:
            made = [t for t in tensors_in((out,)) if t.requires_grad]
            if other is not None and tuple(t.shape for t in tensors_in((out,))) == other.gave:
                self.tracked.update((id(t), _Tracked(t, names)) for t in made)
                return out
            if not made:
                return out
            out = map_tensors(torch.Tensor.detach, out)
        if other is None or not isinstance(out, Tensor) or not (claims := self._claims(func, args, kwargs)):
            self._refuse(names, f"{what} has no formula")
            return out
        for t in given:
            if id(t) in self.tracked and not any(c.value is t for c in claims):
                self._refuse(self.tracked[id(t)].names, f"{what} has no formula for it")
        recorded = [self._recorded(c, given, out, other, what) for c in claims]
        return self._hooked(out, [r for r in recorded if r is not None])

    def _claims(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Claim]:
        if func not in FUNCTIONS:
            return []
        try:
            claims = FUNCTIONS[func](*args, **kwargs)
        except TypeError:  # another way to write the arguments than the one that is known
            return []
        return [c for c in claims if id(c.value) in self.tracked]

    def _recorded(
        self, claim: Claim, given: list[Tensor], out: Tensor, other: Call, what: str
    ) -> Recorded | None:
        """The use, or None after refusing its parameters if their samples' dimensions are not clear."""
        value, names = self.tracked[id(claim.value)]
        at = [next(i for i, t in enumerate(given) if t is x) for x in claim.inputs]
        dims = [self._dim(out.shape, other.gave[0], claim.trailing)]
        for x, i, trailing in zip(claim.inputs, at, claim.trailing_in, strict=True):
            dims.append(self._dim(x.shape, other.given[i], trailing))
        found = tuple(d for d in dims if d is not None)
        fits = len(found) == len(dims) and len({d.fold for d in found}) == 1
        if fits and claim.aligned:
            full = (1,) * (out.ndim - value.ndim) + tuple(value.shape)
            fits = len(full) == out.ndim and all(a in (1, b) for a, b in zip(full, out.shape, strict=True))
            fits = fits and full[found[0].dim] == 1 and len({d.dim for d in found}) == 1
        if not fits:
            self._refuse(names, f"{what} does not show which dimension is the samples'")
            return None
        inputs = tuple(x.detach() for x in claim.inputs)
        claim.inputs = ()  # these have a graph, which has a hook, which has the claim
        versions = tuple(x._version for x in inputs)
        return Recorded(names, value, self._geometry(value, names), claim, inputs, versions, found, what)

    def _dim(self, shape: torch.Size, other: torch.Size, trailing: int) -> SampleDim | None:
        rows, rows_there = self.calls.rows, self.other.rows if self.other else 0
        if len(shape) != len(other):
            return None
        differ = [d for d, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(differ) != 1 or differ[0] >= len(shape) - trailing:
            return None
        fold = shape[differ[0]] // rows
        if shape[differ[0]] != fold * rows or other[differ[0]] != fold * rows_there:
            return None
        return SampleDim(differ[0], fold)

    def _geometry(self, value: Tensor, names: tuple[str, ...]) -> Geometry | None:
        if len(names) > 1:
            return None
        leaf = self.leaves[names[0]]
        memory = [t.untyped_storage().data_ptr() for t in (value, leaf)]
        if memory[0] != memory[1] or value.dtype != leaf.dtype:
            return None
        offset = int(value.storage_offset()) - int(leaf.storage_offset())
        return Geometry(tuple(value.shape), value.stride(), offset)

    def _hooked(self, out: Tensor, recorded: list[Recorded]) -> Tensor:
        if not recorded:
            return out
        for r in recorded:
            for n in r.names:
                self.uses[n].append(r)
        if not out.requires_grad:
            started: Tensor = _Start.apply(out.clone() if out._is_view() else out, self.seed)
            out = started

        def hook(g: Tensor) -> None:
            if self.arrived is not None:
                self.arrived(recorded, g)

        out.register_hook(hook)  # type: ignore[no-untyped-call]
        return out

    # ----------------------------------------------------------------- what functions are given
    def _with_graph(self, t: Tensor) -> Tensor:
        tracked = self.tracked.get(id(t))
        if tracked is None:
            return t
        return self.leaves[tracked.names[0]] if not t.requires_grad else t

    def _without_graph(self, t: Tensor) -> Tensor:
        return t.detach() if id(t) in self.tracked and t.requires_grad else t


def _samples_first(t: Tensor, d: SampleDim, rows: int) -> Tensor:
    t = t.movedim(d.dim, 0)
    return torch.unflatten(t, 0, (rows, d.fold)) if d.fold > 1 else t
