"""How `diagonal` computes squared gradients: a head in closed form, any layers in one pass, or one by one.

In closed form no backward pass is needed (`head`). Other parameters take one backward pass for all
samples together (`onepass`), as long as all their uses have a formula; those without take
``torch.func`` (`fallback`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_unlearn.batches import check_logits, check_rows, logits_of, map_tensors, take_rows
from fl_unlearn.types import FisherError

from .cotangents import cotangents, direction, draw_labels, weights_of
from .fallback import GeneralPath
from .groups import GroupSums, split_groups
from .head import OTHER_OUTPUT, UNUSED, add_head, forward_with_head, head_problem
from .onepass import NoFormulaError, OnePass, layout_of

log = logging.getLogger(__name__)

# What may differ from plain autograd by rounding: a share of a parameter's squared gradients, and gradients
# of a share of the model's largest (a bias before a norm has none but rounding errors).
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 0.1
NOISE = {torch.float64: 1e-12, torch.float32: 1e-5}
HALF_NOISE = 1e-2
ROWS = 16  # compared of each layout, if a batch has so many


@dataclass(eq=False)
class Computation:
    """Adds batches up, each by the fastest way that holds.

    Args:
        model: The model.
        names: The parameters in scope.
        kind: Kind of Fisher.
        head: Name and module of what should give the logits, or None.
        strict: Refuse a head that does not give the model's output, instead of taking backward passes.
        memory: Bytes that activations, gradients and temporary tensors may take.
        true_samples: For kind "true": labels drawn a sample, where backward passes are taken; None: all.
        seed: Of the draws.
    """

    model: nn.Module
    names: Sequence[str]
    kind: str
    head: tuple[str, nn.Linear] | None
    strict: bool
    memory: int
    true_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.sums = GroupSums(self.model, self.names)
        self.general = GeneralPath(self.model, self.sums, self.memory)
        self.plain = GeneralPath(self.model, self.sums, self.memory)  # of all parameters, to compare with
        self.onepass = OnePass(self.model, self.sums.parameters, self.memory)
        self.parameters = list(self.sums.parameters.values())
        self.draws = torch.Generator().manual_seed(self.seed)
        self.compared: dict[Any, int] = {}  # rows, by layout of the inputs
        self.told: set[str] = set()
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
        add = self._add_mini_batches if self.kind == "batch" else self._add_backwards
        with torch.inference_mode(False):  # it allows no gradient, nor do tensors made under it
            x = map_tensors(lambda t: t.clone() if t.is_inference() else t.detach(), x)
            return add(x, y, groups, classes, where)

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

    # ----------------------------------------------------------------- backward passes
    def _add_mini_batches(self, x: Any, y: Tensor, groups: Tensor, classes: int | None, where: str) -> Tensor:
        z = self._checked(x, y, classes, where)
        check_rows(x, len(y), where)
        for group, _ in split_groups(groups):
            self.sums.of(group, 1)
        self.general.add_mini_batches(x, z, y, groups)
        return z

    def _add_backwards(self, x: Any, y: Tensor, groups: Tensor, classes: int | None, where: str) -> Tensor:
        try:
            check_rows(x, len(y), where)
        except FisherError:
            self._checked(x, y, classes, where)  # what is wrong with the logits says more
            raise
        key, n = layout_of(x), len(y)
        if self.compared.get(key, 0) < min(n, ROWS // 2):
            self.compared[key] = n
            self._compare(x, y, classes, where)
        for group, rows in split_groups(groups):
            self.sums.of(group, len(rows))
        at_once = min(n, self.onepass.rows_at_once(x)) if self.onepass.served else n
        logits = []
        for start in range(0, n, at_once):
            some = slice(start, min(n, start + at_once))
            part = where if at_once == n else f"{where} from row {start} on"
            xs = x if at_once == n else take_rows(x, some)
            logits.append(self._add_rows(xs, y[some], groups[some], classes, part))
        return torch.cat(logits)

    def _add_rows(self, x: Any, y: Tensor, groups: Tensor, classes: int | None, where: str) -> Tensor:
        parts = split_groups(groups)
        if self.onepass.served:
            with self.onepass.running(x, len(y)) as run:
                z = run.logits
                check_logits(z, y, classes, where)
                drawn = self._drawn(z)
                weights = weights_of(self.kind, z, y, [rows for _, rows in parts])
                totals = [(rows, self.sums.of(group)) for group, rows in parts]
                us = cotangents(self.kind, z, y, drawn)
                run.add_squares(us, weights, totals, self.onepass.budget(x, len(y)))
        else:
            z = self._checked(x, y, classes, where)
            drawn = self._drawn(z)
        if self.onepass.refused:
            self._tell()
            self.general.add(self.kind, x, z, y, groups, drawn)
        return z

    def _checked(self, x: Any, y: Tensor, classes: int | None, where: str) -> Tensor:
        z = logits_of(self.model, x)
        check_logits(z, y, classes, where)
        return z

    def _drawn(self, z: Tensor) -> Tensor | None:
        if self.kind != "true" or self.true_samples is None or self.true_samples >= z.shape[1]:
            return None
        uniform = torch.rand(len(z), self.true_samples, dtype=torch.float64, generator=self.draws)
        return draw_labels(z, uniform.to(z.device))

    # ----------------------------------------------------------------- is it right for this model?
    def _compare(self, x: Any, y: Tensor, classes: int | None, where: str) -> None:
        """Refuse the one pass whatever it gets wrong, by a few rows of the batch.

        The last one is compared with plain autograd. Every second one has no share in the output, so it must
        get no gradient: it would if the model moved samples about inside, such as to sort them. They are in
        an order of their own, for a batch may be sorted already.
        """
        if not self.onepass.served:
            return
        try:
            rows = self._chosen_rows(x, len(y))
            few, labels = take_rows(x, rows), y[rows.to(y.device)]
            z = self._checked(few, labels, classes, where)
            u = direction(z, labels)
            u[len(u) % 2 : -1 : 2] = 0.0
            got, others = self._squares_of_last(few, u)
            with self.plain.differentiable():
                want = self.plain.gradient(take_rows(few, slice(len(u) - 1, None)), u[-1:])
        except NoFormulaError as e:
            self._refuse(e.names, e.reason)
            self._compare(x, y, classes, where)
            return
        except (FisherError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as e:  # a model may break when it is recorded, and still run otherwise
            log.debug("a recorded pass failed", exc_info=True)
            self._refuse(self.sums.parameters, f"the model failed with {type(e).__name__}: {e!s:.200}")
            return
        half = z.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(z.device.type)
        largest = max(float(g.norm()) for g in want.values())
        for n, square in got.items():
            dtype = torch.float16 if half else self.sums.parameters[n].dtype
            expected = want[n].double().square()
            allowed = TOLERANCE.get(dtype, HALF_TOLERANCE) * float(expected.norm())
            allowed += (NOISE.get(dtype, HALF_NOISE) * largest) ** 2
            if not float(square.sub_(expected).norm()) <= allowed:
                self._refuse([n], "its gradients differ from those of plain autograd")
            elif not float(others[n].norm()) <= allowed:
                self._refuse([n], "the model changes the order of the samples")

    def _chosen_rows(self, x: Any, n: int) -> Tensor:
        """Numbers of 3 rows or more, at random; from the first again where there are less."""
        count = max(3, min(n, ROWS, self.onepass.rows_at_once(x)))
        return torch.randperm(n, generator=torch.Generator().manual_seed(0)).repeat(3)[:count]

    def _squares_of_last(self, x: Any, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Squared gradients of the last row as the one pass has them, and of those that `_compare` mutes."""
        last, others = (
            {
                n: torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
                for n, p in self.onepass.served.items()
            }
            for _ in range(2)
        )
        rows = torch.arange(len(u), device=u.device)
        with self.onepass.running(x, len(u)) as run:
            weights = torch.float32 if run.logits.dtype == torch.float16 else None
            totals = [(rows[-1:], last), (rows[len(u) % 2 : -1 : 2], others)]
            run.add_squares([u], weights, totals, self.onepass.budget(x, len(u)))
        return {n: last[n] for n in self.onepass.served}, others

    def _refuse(self, names: Iterable[str], reason: str) -> None:
        for n in names:
            self.onepass.refused.setdefault(n, reason)

    def _tell(self) -> None:
        """Turn over to ``torch.func`` what has been refused, and say so once."""
        new = {n: r for n, r in self.onepass.refused.items() if n not in self.told}
        if not new:
            return
        self.told.update(new)
        self.general.restrict(self.told)
        for reason in dict.fromkeys(new.values()):
            names = [n for n, r in new.items() if r == reason]
            log.warning(
                "squared gradients by %s come from torch.func, which is slower: %s",
                ", ".join(map(repr, names)),
                reason,
            )
