"""Summed squared gradients per class: they add over clients, pool over classes, and travel as bytes."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .types import FISHER_KINDS, REST, FisherError


@dataclass(eq=False)
class FisherSums:
    """Summed squared gradients by group, as one client's or several clients' data gave them.

    Treat it as immutable: results share tensors.

    Attributes:
        kind: Kind of Fisher, one of `types.FISHER_KINDS`.
        scope: The scope as it was asked for.
        num_classes: Number of logits.
        sums: Group (a class label, or `types.REST`) to parameter name to sum, shaped like the parameter.
        counts: Group to number of samples (of mini-batches for kind "batch").
    """

    kind: str
    scope: str
    num_classes: int
    sums: dict[int, dict[str, Tensor]]
    counts: dict[int, int]

    @property
    def names(self) -> list[str]:
        """The parameters' names; none when there is no group."""
        return list(next(iter(self.sums.values()), {}))

    def __add__(self, other: FisherSums) -> FisherSums:
        if not isinstance(other, FisherSums):
            return NotImplemented
        for what in ("kind", "scope", "num_classes"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise FisherError(f"Fishers of different {what} do not add: {mine!r} and {theirs!r}")
        if self.sums and other.sums:
            _check_alike(next(iter(self.sums.values())), next(iter(other.sums.values())), "the second Fisher")
        both = replace(self, sums={}, counts={})
        for g in sorted({*self.sums, *other.sums}):
            a, b = self.sums.get(g), other.sums.get(g)
            both.sums[g] = {n: t + b[n] for n, t in a.items()} if a and b else a or b or {}
            both.counts[g] = self.counts.get(g, 0) + other.counts.get(g, 0)
        return both

    def __radd__(self, other: object) -> FisherSums:
        return self if other == 0 else NotImplemented

    def total(self, labels: Collection[int] | None = None) -> tuple[dict[str, Tensor], int]:
        """Sum and count over the groups in ``labels``; None: all. A group that is absent has no samples."""
        chosen = [g for g in self.sums if labels is None or g in labels]
        shapes = next(iter(self.sums.values()), {})
        out = {n: torch.zeros_like(t) for n, t in shapes.items()}
        for g in chosen:
            for n, total in out.items():
                total += self.sums[g][n]
        return out, sum(self.counts[g] for g in chosen)

    def mean(self, labels: Collection[int] | None = None) -> dict[str, Tensor]:
        """The diagonal Fisher over the groups in ``labels``: `total` by its count.

        Raises:
            FisherError: If they have no sample.
        """
        total, count = self.total(labels)
        if count < 1:
            raise FisherError(f"no samples in groups {sorted(self.sums if labels is None else labels)}")
        return {n: t / count for n, t in total.items()}

    def without(self, labels: Collection[int]) -> FisherSums:
        """These sums less the groups in ``labels``."""
        left = [g for g in self.sums if g not in labels]
        return replace(self, sums={g: self.sums[g] for g in left}, counts={g: self.counts[g] for g in left})

    def pooled(self, apart: Collection[int], without: Collection[int] = ()) -> FisherSums:
        """These sums with only some classes kept apart: what a request asks for, from sums of every class.

        The retained sums are so the sum of the other classes. They equal whole minus forgotten, which would
        lose digits, and could end below 0, just where a parameter matters to the forgotten data only.

        Args:
            apart: Classes that keep sums of their own; zero where there is no sample.
            without: Classes to leave out; none of ``apart``.

        Returns:
            The sums of ``apart``, and those of all other classes under `types.REST`.

        Raises:
            FisherError: If there is no group at all, a class is unknown, or the sums are of mini-batches.
        """
        if self.kind == "batch" or not self.sums:
            raise FisherError("sums of mini-batches, or of no data, cannot be pooled: compute them anew")
        if unknown := [c for c in apart if not 0 <= c < self.num_classes]:
            raise FisherError(f"unknown class {unknown[0]} among {self.num_classes} classes, from 0 up")
        own = {REST: [g for g in self.sums if g not in {*apart, *without}], **{c: [c] for c in sorted(apart)}}
        one = {g: m[0] for g, m in own.items() if len(m) == 1 and m[0] in self.sums}
        totals = {g: self.total(members) for g, members in own.items() if g not in one}
        totals |= {g: (self.sums[c], self.counts[c]) for g, c in one.items()}
        sums = {g: totals[g][0] for g in own}
        return replace(self, sums=sums, counts={g: totals[g][1] for g in own})

    def to(self, dtype: torch.dtype) -> FisherSums:
        """These sums in another dtype."""
        return replace(self, sums={g: {n: t.to(dtype) for n, t in s.items()} for g, s in self.sums.items()})

    def validate(self) -> None:
        """Check what came from elsewhere.

        Raises:
            FisherError: If kind, counts, names, shapes or values are not those of a Fisher.
        """
        if self.kind not in FISHER_KINDS:
            raise FisherError(f"kind must be one of {', '.join(FISHER_KINDS)}; got {self.kind!r}")
        if self.num_classes < 1 or self.sums.keys() != self.counts.keys():
            raise FisherError(f"{self.num_classes} classes, sums of {list(self.sums)}, counts {self.counts}")
        first = next(iter(self.sums.values()), {})
        for g, sums in self.sums.items():
            count = self.counts[g]
            if not REST <= g < self.num_classes or count < 0:
                raise FisherError(f"group {g} with count {count} among {self.num_classes} classes")
            _check_alike(first, sums, f"group {g}")
            for n, t in sums.items():
                if not t.is_floating_point() or not bool(t.isfinite().all()) or bool((t < 0).any()):
                    raise FisherError(f"'{n}' of group {g} must be finite floating-point sums, 0 or more")
                if count == 0 and bool(t.any()):
                    raise FisherError(f"'{n}' of group {g} is not zero although its count is 0")

    def to_bytes(self) -> bytes:
        """As one safetensors file, the same bytes for the same sums; the rest is JSON in its header."""
        about: dict[str, Any] = {k: getattr(self, k) for k in ("kind", "scope", "num_classes", "names")}
        about["counts"] = {str(g): c for g, c in self.counts.items()}
        tensors = {f"{g}/{n}": t.detach().cpu() for g, s in self.sums.items() for n, t in s.items()}
        # safetensors refuses shared memory, which tied parameters have; one key, for it shuffles several.
        tensors = {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
        return safetensors.torch.save(tensors, {"fisher": json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> FisherSums:
        """What `to_bytes` wrote. Values are not judged: call `validate` on what came from elsewhere.

        Raises:
            FisherError: If ``data`` is nothing that `to_bytes` writes.
        """
        try:
            tensors = safetensors.torch.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"]["fisher"])
            counts = {int(g): int(c) for g, c in about["counts"].items()}
            sums = {g: {str(n): tensors.pop(f"{g}/{n}") for n in about["names"]} for g in counts}
            fisher = cls(str(about["kind"]), str(about["scope"]), int(about["num_classes"]), sums, counts)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise FisherError(f"{len(data)} bytes that are no Fisher sums: {type(e).__name__}: {e}") from e
        if tensors:
            raise FisherError(f"tensors of no group or name: {', '.join(list(tensors)[:4])}")
        return fisher


def _check_alike(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    if a.keys() != b.keys():
        raise FisherError(f"{what} has other parameters: {', '.join(sorted(a.keys() ^ b.keys())[:4])}")
    for n, t in a.items():
        if t.shape != b[n].shape:
            raise FisherError(f"{what}: '{n}' is {list(b[n].shape)} where {list(t.shape)} was expected")
