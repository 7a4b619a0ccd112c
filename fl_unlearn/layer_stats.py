"""Statistics of a hidden layer's output, kept as sums so that clients' answers add exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batches import check_rows, device_of, evaluating, to_device, unpack
from .types import REST, EraseError

MAX_WIDTH = 8192
"""Widest layer whose statistics are taken: they are its width squared."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose outputs they can be of."""

_TOLERANCE = 1e-9  # of the trace of second moments, for what rounding may take from a matrix' eigenvalues
_PIECE = 1 << 22  # values of a layer's output turned to float64 at a time


@dataclass(eq=False)
class LayerSums:
    """Sums over observations of one layer's output z: one a sample, or one a position of each sample.

    Treat it as immutable: results share tensors.

    Attributes:
        counts: Group (a class label, or `types.REST`) to number of observations.
        sums: Group to the sum of z, float64, shape (d,); the same groups.
        second: Sum of z z^T over all observations, float64, shape (d, d).
    """

    counts: dict[int, int]
    sums: dict[int, Tensor]
    second: Tensor

    @classmethod
    def zeros(cls, width: int, groups: Collection[int], device: torch.device | str = "cpu") -> LayerSums:
        """Sums over nothing."""
        zero = torch.zeros(width, dtype=torch.float64, device=device)
        second = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(dict.fromkeys(groups, 0), {g: zero.clone() for g in groups}, second)

    @property
    def width(self) -> int:
        """The layer's number of outputs d."""
        return self.second.shape[0]

    @property
    def count(self) -> int:
        """Observations in all groups."""
        return sum(self.counts.values())

    @property
    def mean(self) -> Tensor:
        """The mean of z over all observations, shape (d,).

        Raises:
            EraseError: If there are none.
        """
        if not self.count:
            raise EraseError("there is no observation of the layer's output; is the data empty?")
        total: Tensor = torch.stack(list(self.sums.values())).sum(0)
        return total / self.count

    def __add__(self, other: LayerSums) -> LayerSums:
        return self._with(other, 1)

    def __radd__(self, other: object) -> LayerSums:
        return self if other == 0 else NotImplemented

    def __sub__(self, other: LayerSums) -> LayerSums:
        """These sums less some of their observations, such as those of one class."""
        less = self._with(other, -1)
        if bad := {g: n for g, n in less.counts.items() if n < 0}:
            raise EraseError(f"more observations would be taken away than there are, by group: {bad}")
        return less

    def _with(self, other: LayerSums, sign: int) -> LayerSums:
        if not isinstance(other, LayerSums):
            return NotImplemented
        if self.width != other.width:
            raise EraseError(f"sums of layers of different width do not add: {self.width} and {other.width}")
        counts, sums = dict(self.counts), dict(self.sums)
        for g, n in other.counts.items():
            counts[g] = counts.get(g, 0) + sign * n
            sums[g] = sums[g] + sign * other.sums[g] if g in sums else sign * other.sums[g]
        return LayerSums(counts, sums, self.second + sign * other.second)

    def moved(self, shift: Tensor) -> LayerSums:
        """What these sums would be if ``shift``, shape (d,), had been added to every observation."""
        total = torch.stack(list(self.sums.values())).sum(0)
        cross = torch.outer(total, shift)
        second = self.second + cross + cross.T + self.count * torch.outer(shift, shift)
        return replace(
            self, sums={g: s + self.counts[g] * shift for g, s in self.sums.items()}, second=second
        )

    def cpu(self) -> LayerSums:
        """These sums on the CPU."""
        return LayerSums(self.counts, {g: s.cpu() for g, s in self.sums.items()}, self.second.cpu())

    def validate(self) -> None:
        """Check what came from elsewhere: no set of observations gives other sums than these can be.

        Raises:
            EraseError: If groups, counts, shapes or values are not those of sums over observations.
        """
        d = self.second.shape[0] if self.second.ndim == 2 else 0
        if not 0 < d <= MAX_WIDTH or self.second.shape != (d, d) or self.counts.keys() != self.sums.keys():
            raise EraseError(
                f"second moments of shape {list(self.second.shape)} (at most {MAX_WIDTH} square), counts of "
                f"the groups {list(self.counts)[:20]}, sums of {list(self.sums)[:20]}"
            )
        if any(g < REST or n < 0 for g, n in self.counts.items()):
            raise EraseError(f"groups are labels from 0 up or {REST}, counts 0 or more; got {self.counts}")
        if any(s.shape != (d,) for s in self.sums.values()):
            raise EraseError(f"each group's sum must have shape [{d}]")
        tensors = [self.second, *self.sums.values()]
        if any(t.dtype != torch.float64 or not bool(t.isfinite().all()) for t in tensors):
            raise EraseError("sums must be finite float64 values")
        self._validate_moments()

    def _validate_moments(self) -> None:
        """Second moments are symmetric, and at least what the groups' means alone account for."""
        trace = float(self.second.diagonal().sum())
        slack = _TOLERANCE * trace
        if not math.isfinite(trace) or float((self.second - self.second.T).abs().max()) > max(slack, 0.0):
            raise EraseError("second moments must be a symmetric matrix with a finite trace")
        within = self.second.clone()
        for g, s in self.sums.items():
            if self.counts[g]:
                within -= torch.outer(s, s / self.counts[g])
            elif bool(s.any()):
                raise EraseError(f"the sum of group {g} is not zero although its count is 0")
        within.diagonal().add_(max(slack, torch.finfo(torch.float64).tiny))
        info = torch.linalg.cholesky_ex(within).info  # fails on a negative eigenvalue; far cheaper than those
        if not bool(within.isfinite().all()) or int(info):
            raise EraseError("the second moments are smaller than the groups' means allow")

    def to_tensors(self) -> dict[str, Tensor]:
        """The values: ``second``, the upper triangle row by row, and ``sum/<group>``."""
        rows, columns = torch.triu_indices(self.width, self.width)
        out = {"second": self.second.cpu()[rows, columns]}
        return out | {f"sum/{g}": s.cpu().contiguous() for g, s in self.sums.items()}

    @classmethod
    def from_tensors(cls, counts: Mapping[int, int], tensors: Mapping[str, Tensor]) -> LayerSums:
        """What `to_tensors` gave. Values are not judged: call `validate` on what came from elsewhere.

        Raises:
            EraseError: If tensors are missing, or their sizes do not fit each other.
        """
        expected = {"second", *(f"sum/{g}" for g in counts)}
        if expected != set(tensors):
            raise EraseError(f"statistics with the values {sorted(tensors)[:6]}, not {sorted(expected)[:6]}")
        packed = tensors["second"]
        d = (math.isqrt(8 * packed.numel() + 1) - 1) // 2
        if packed.ndim != 1 or d * (d + 1) // 2 != packed.numel() or not 0 < d <= MAX_WIDTH:
            raise EraseError(f"second moments of {list(packed.shape)} values are no triangle of a matrix")
        second = torch.zeros(d, d, dtype=packed.dtype)
        rows, columns = torch.triu_indices(d, d)
        second[rows, columns] = packed
        second[columns, rows] = packed
        return cls(dict(counts), {g: tensors[f"sum/{g}"] for g in counts}, second)


def pool(parts: Sequence[LayerSums]) -> LayerSums:
    """Statistics of one layer in several models, the newest first, as if they were of one model.

    Each is moved to the mean of the first, so that what pooling adds up is the spread within each model, not
    the drift of the mean from one model to the next.

    Raises:
        EraseError: If there is none, one has no observation, or widths differ.
    """
    if not parts:
        raise EraseError("there are no statistics to pool")
    total = parts[0]
    for part in parts[1:]:
        total = total + part.moved(parts[0].mean - part.mean)
    return total


def watch(module: nn.Module, name: str, see: Callable[[str, Any], None]) -> RemovableHandle:
    """Have a module show each of its outputs, with its name, to ``see``."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        see(name, output)

    return module.register_forward_hook(hook)


def layer_sums(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Sequence[str],
    classes: Collection[int],
    *,
    ignored: Collection[int] = (),
    device: torch.device | str | None = None,
) -> dict[str, LayerSums]:
    """Statistics of layers' outputs, in one forward pass over the data.

    Args:
        model: The model; it is run in eval mode, and left as it was.
        loader: Batches as `batches.unpack` takes them.
        layers: Names of ``nn.Linear`` layers and convolutions. Each position of a sequence or picture counts
            as one observation.
        classes: Labels whose sums are kept apart; all others are pooled under `types.REST`.
        ignored: Labels whose samples are left out.
        device: Where the model is; default there.

    Returns:
        Layer to sums, on the CPU, with a group for each of ``classes`` and the rest.

    Raises:
        EraseError: If a layer is none of the model, or does not give one row a sample.
        FisherError: If a batch is malformed.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if unknown := [n for n in layers if not isinstance(modules.get(n), LAYERS)]:
        raise EraseError(f"{unknown[0]!r} is no nn.Linear or convolution of the model")
    where = device_of(model, device)
    keep = torch.tensor(sorted(set(classes)), dtype=torch.int64, device=where)
    drop = torch.tensor(sorted(set(ignored)), dtype=torch.int64, device=where)
    observers = [_Observer(n, modules[n], [*keep.tolist(), REST], where) for n in layers]
    hooks = [watch(o.module, o.name, o.see) for o in observers]
    with evaluating(model, hooks):
        for i, batch in enumerate(loader):
            x, y = unpack(batch)
            check_rows(x, len(y), f"batch {i}")
            if len(y) == 0:
                continue
            y = y.to(where)
            groups = torch.where(torch.isin(y, keep), y, REST)
            for observer in observers:
                observer.expect(groups, ~torch.isin(y, drop))
            model(to_device(x, where))
            if unseen := [o.name for o in observers if not o.seen]:
                raise EraseError(f"{unseen[0]!r} is not called in a forward pass; name a layer that is")
    return {o.name: o.sums.cpu() for o in observers}


class _Observer:
    """Adds up one layer's outputs as they come: an activation may overwrite them right afterwards."""

    def __init__(self, name: str, module: nn.Module, groups: list[int], device: torch.device) -> None:
        self.name, self.module, self.seen = name, module, False
        assert isinstance(module.weight, Tensor)
        self.sums = LayerSums.zeros(module.weight.shape[0], groups, device)

    def expect(self, groups: Tensor, used: Tensor) -> None:
        """Take the groups of the next batch's samples, and which of these count."""
        self.groups, self.used, self.seen = groups, used, False

    def see(self, _: str, z: Any) -> None:
        if self.seen:
            raise EraseError(f"{self.name!r} is called more than once in a forward pass; name another layer")
        self.seen = True
        if not isinstance(z, Tensor) or z.ndim < 2 or z.shape[0] != len(self.groups):
            raise EraseError(
                f"{self.name!r} gives {list(z.shape)} for {len(self.groups)} samples; its first dimension "
                "must be the samples'"
            )
        channel = z.ndim - 1 if isinstance(self.module, nn.Linear) else 1
        z, groups = z.movedim(channel, -1)[self.used], self.groups[self.used]
        if not bool(z.isfinite().all()):
            raise EraseError(f"the output of {self.name!r} is not finite; has the model diverged?")
        positions = math.prod(z.shape[1:-1])
        rows, of_row = z.reshape(-1, z.shape[-1]), groups.repeat_interleave(positions)
        for own, part in zip(
            *(t.split(max(1, _PIECE // self.sums.width)) for t in (of_row, rows)), strict=True
        ):
            wide = part.double()
            self.sums.second.addmm_(wide.T, wide)
            for g, total in self.sums.sums.items():
                chosen = wide[own == g]
                total += chosen.sum(0)
                self.sums.counts[g] += len(chosen)
