"""Exact squared gradients of every parameter from one forward and one backward pass over a batch.

The forward pass is recorded (`Recorder`); the gradient of each use's output then gives every sample's
gradient by the parameter, and the use has a formula for the sum of their squares. A parameter that is used
once is done as soon as its gradient arrives; of one used more often the uses wait for each other, and are
added up before they are squared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fl_unlearn.batches import answer_of, take_rows, tensors_in
from fl_unlearn.types import FisherError

from .combine import DerivedUse, combined
from .cotangents import propagated
from .decompose import decomposed
from .memory import PeakBytes
from .record import Geometry, Pass, Recorded, Recorder
from .uses import Use

Totals = Sequence[tuple[Tensor, Mapping[str, Tensor]]]
"""Rows of each group, and the totals by parameter that they add to."""

KEPT = 0.6  # share of the memory budget for the two passes; formulas get what they leave


class NoFormulaError(FisherError):
    """A use turned out to have no formula when its gradient arrived; ``names`` are its parameters."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(f"no squared gradients by {', '.join(map(repr, names))}: {reason}")
        self.names, self.reason = names, reason


@dataclass(frozen=True)
class Layout:
    """What is known of inputs of some shape: passes over 2 and 3 rows, and the bytes that a row takes."""

    two: Pass
    three: Pass
    bytes: int


@dataclass(eq=False)
class _Slot:
    """Uses of one parameter, or of one part of it, that are added up before they are squared."""

    name: str
    part: Geometry | None  # None: the whole parameter
    joint: bool  # uses are of different things derived from the parameter
    expected: int = 0
    uses: list[Use] = field(default_factory=list)
    arrived: int = 0

    def add(self, uses: Sequence[Use]) -> bool:
        """Take the uses of one call; True when all are here."""
        self.uses += uses
        self.arrived += 1
        return self.arrived == self.expected

    def add_squares(self, totals: Totals, budget: int) -> None:
        uses, self.uses, self.arrived = self.uses, [], 0
        if uses:
            parts = [(rows, self._of(total[self.name])) for rows, total in totals]
            combined(uses).add_squares(parts, budget)

    def _of(self, total: Tensor) -> Tensor:
        if self.part is None:
            return total
        size, stride, offset = self.part
        return total.as_strided(size, stride, total.storage_offset() + offset)


class Running:
    """A batch between its forward and its backward pass.

    Args:
        recorder: The recorded forward pass.
        output: What the model returned, with its graph.
        names: The parameters to serve.

    Attributes:
        logits: The output without a graph.
    """

    def __init__(self, recorder: Recorder, output: Tensor, names: Iterable[str]) -> None:
        self.recorder, self.output = recorder, output
        self.slots = {n: _slots(n, recorder.parameters[n], recorder.uses[n]) for n in names}
        self.logits = output.detach()

    def add_squares(
        self, cotangents: Iterable[Tensor], weights: torch.dtype | None, totals: Totals, budget: int
    ) -> None:
        """Add the squared gradients of each group's rows to its totals; possible once.

        Args:
            cotangents: As of `fisher.cotangents.cotangents`; each takes a backward pass.
            weights: As of `fisher.cotangents.weights_of`.
            totals: What to add to.
            budget: Bytes that formulas may take.

        Raises:
            NoFormulaError: If a formula does not apply after all.
            FisherError: If an operation in place destroyed what is needed.
        """
        if not self.output.requires_grad:  # no parameter reaches it
            return
        for u, last in _with_last(cotangents):
            v, factors = propagated(u, self.output.dtype, weights)
            self.recorder.arrived = partial(self._arrived, factors, totals, budget, last)
            torch.autograd.grad(self.output, self.recorder.seed, v, retain_graph=not last, allow_unused=True)
            self.recorder.arrived = None  # no cycle keeps this pass in memory
            for slots in self.slots.values():
                for slot in slots.values():
                    slot.add_squares(totals, budget)  # what is left where some uses had no gradient

    def _arrived(
        self,
        factors: Tensor | None,
        totals: Totals,
        budget: int,
        last: bool,
        recorded: Sequence[Recorded],
        g: Tensor,
    ) -> None:
        with torch.autocast(g.device.type, enabled=False):  # formulas keep their precision
            for r in recorded:
                names = [n for n in r.names if n in self.slots]
                if not names:
                    continue
                try:
                    uses = r.uses(g, len(self.output), factors)
                except NotImplementedError as e:
                    raise NoFormulaError(names, f"{r.function}: {e}") from e
                if last:
                    r.inputs = ()
                for name in names:
                    slots = self.slots[name]
                    slot = slots[r.geometry if r.geometry in slots else None]
                    if slot.add(self._by(name, r, uses) if slot.joint else uses):
                        slot.add_squares(totals, budget)

    def _by(self, name: str, r: Recorded, uses: Sequence[Use]) -> Sequence[Use]:
        if r.value is self.recorder.parameters[name]:
            return uses
        return [DerivedUse(u, r.value, self.recorder.leaves[name]) for u in uses]


def _slots(name: str, parameter: Tensor, recorded: Sequence[Recorded]) -> dict[Geometry | None, _Slot]:
    """By what was used: the whole and disjoint parts of a parameter; or None, for all uses together."""
    whole = Geometry(tuple(parameter.shape), parameter.stride(), 0)
    parts = {r.geometry for r in recorded}
    slots: dict[Geometry | None, _Slot]
    if None in parts or not _disjoint(parameter, whole, parts):
        slots = {None: _Slot(name, None, True)}
    else:
        slots = {g: _Slot(name, None if g == whole else g, False) for g in parts}
    for r in recorded:
        slots[r.geometry if r.geometry in slots else None].expected += 1
    return slots


def _disjoint(parameter: Tensor, whole: Geometry, parts: Collection[Geometry | None]) -> bool:
    """Whether no two elements of these parts are the same element of the parameter."""
    if all(g == whole for g in parts):
        return True
    marks = torch.zeros_like(parameter, dtype=torch.uint8, requires_grad=False)
    if marks.stride() != whole.stride:
        return False
    count = 0
    for g in parts:
        if g is None or 0 in g.stride:
            return False
        marks.as_strided(*g).fill_(1)
        count += math.prod(g.size)
    return int(marks.sum()) == count


def _with_last(items: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each item, and whether it is the last."""
    ahead = iter(items)
    item = next(ahead)
    for following in ahead:
        yield item, False
        item = following
    yield item, True


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Graphs can be recorded, and no parameter of the model requires a gradient."""
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in wanted:
            p.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for p, required in wanted:
            p.requires_grad_(required)


class OnePass:
    """Squared gradients by all parameters whose uses have a formula.

    Args:
        model: The model; its parameters require no gradient while it runs, and are as before afterwards.
        parameters: By name, those in scope.
        memory: Bytes that activations and temporary tensors may take.

    Attributes:
        refused: Parameters to be treated otherwise, and why; any forward pass may add some.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], memory: int) -> None:
        self.model = model
        self.parameters = parameters
        self.memory = memory
        self.refused: dict[str, str] = {}
        self._layouts: dict[Any, Layout] = {}

    @property
    def served(self) -> dict[str, nn.Parameter]:
        """The parameters that are not refused."""
        return {n: p for n, p in self.parameters.items() if n not in self.refused}

    def layout(self, x: Any) -> Layout:
        """What is known of inputs like ``x``, of one row or more; at first, by two small passes."""
        key = layout_of(x)
        if key not in self._layouts:
            three = three_rows(x)
            two = take_rows(three, slice(2))
            with _ready(self.model):
                with Recorder({}, 2) as first, decomposed(self.model):
                    answer_of(self.model, two)
                with PeakBytes() as memory:
                    running = self._forward(three, 3, first.calls)
                    running.add_squares([torch.ones_like(running.logits)], None, [], 0)
            self._layouts[key] = Layout(first.calls, running.recorder.calls, memory.peak // 3)
        return self._layouts[key]

    def rows_at_once(self, x: Any) -> int:
        """How many rows like those of ``x`` fit into the memory budget; at least 1."""
        return max(1, int(self.memory * KEPT) // max(1, self.layout(x).bytes))

    def budget(self, x: Any, rows: int) -> int:
        """Bytes that so many rows leave to formulas."""
        return self.memory - min(int(self.memory * KEPT), rows * self.layout(x).bytes)

    @contextmanager
    def running(self, x: Any, rows: int) -> Iterator[Running]:
        """A forward pass over ``x``, of so many rows; the backward pass goes into the context."""
        layout = self.layout(x)
        with _ready(self.model):
            yield self._forward(x, rows, layout.three if rows == 2 else layout.two)

    def _forward(self, x: Any, rows: int, other: Pass) -> Running:
        with Recorder(self.served, rows, other) as recorder, decomposed(self.model):
            output = answer_of(self.model, x)
        recorder.complete()
        self.refused.update(recorder.refused)
        return Running(recorder, output, self.served)


def layout_of(x: Any) -> Any:
    """What inputs of one layout have in common: all but their rows."""
    return tuple((t.shape[1:], t.dtype, t.device) for t in tensors_in(x))


def three_rows(x: Any) -> Any:
    """The first three rows of ``x``, as far as there are; then from the first again."""
    return take_rows(x, torch.arange(3) % len(next(tensors_in(x))))
