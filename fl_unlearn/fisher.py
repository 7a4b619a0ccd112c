"""Diagonal Fisher information of a classifier, kept as sums per class so that clients' answers add exactly.

With logits z, p = softmax(z), e = p − onehot(y) and J the Jacobian of one sample's logits by the parameters,
the share of one sample is, element-wise:

    empirical   (Jᵀ e)²          the squared gradient of its log-likelihood
    normalized  (Jᵀ e / ‖e‖)²    the same divided by ‖e‖²: a few misclassified samples do not dominate
    true        Σ_c p_c (Jᵀ (p − onehot(c)))²    its expectation over labels drawn from the model
    batch       (mean of Jᵀ e)²  over the rows of one group in one batch; counts are such mini-batches

"batch" is what the reference code of X. Liu et al., "Parallel Unlearning in Inherited Model Networks"
(arXiv 2408.08493) computes; it depends on how the loader forms batches, and adds up over whole batches only.
Softmax, closed forms and sums are float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import buffers_kept, check_rows, device_of, take_rows, to_device, unpack
from .fisher_kernels import Computation
from .fisher_sample import Thinning, count_rest
from .fisher_scope import check_model, find_head, find_parameters
from .fisher_scope import resolve_scope as resolve_scope
from .fisher_sums import FisherSums as FisherSums
from .types import FISHER_KINDS, REST, FisherError

DEFAULT_MEMORY = 512 * 2**20  # bytes


class FisherCollector:
    """Sums of squared gradients, filled in batch by batch while somebody else goes through the data.

    Each `add` is the batch's forward pass too: it returns the logits, so that an evaluation which needs them
    anyway gets the Fisher of a head at little more than its own cost. `fisher_diagonal` is a loop over it.

    Args:
        model: Called with a batch's inputs; returns logits of shape (N, C). In eval mode. Wrap the pass in
            `batches.buffers_kept` where the model's forward changes its buffers.
        kind: One of `types.FISHER_KINDS`; see the module's docstring.
        scope: Which parameters; see `resolve_scope`.
        head: Name of the module that gives the logits, where it is not the last ``nn.Linear``.
        keep_classes: Classes with sums of their own, all others being pooled under `types.REST`; each of
            these groups is in the result even when it has no sample. None: every class that occurs.
        num_classes: C, if known; needed when there is no data and the model has no head.
        device: Where the model is; batches are moved there. None: that of the model's first parameter.
        memory: Bytes that activations and temporary tensors may take outside a head, beside the model, the
            sums and one sample's gradients; larger batches are taken in parts, of one sample at least.
        true_samples: For kind "true" outside a head: labels drawn for each sample, whose mean is an unbiased
            estimate; each takes a backward pass. None, or the number of classes or more: exact, one for each
            class.
        seed: Of these draws.
        thinning: Chooses the rows of `types.REST` that are used; None: all. The others do not go through
            the model.

    Raises:
        FisherError: If the model or the arguments do not allow it, with the reasons.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: str = "normalized",
        scope: str = "head",
        head: str | None = None,
        keep_classes: Collection[int] | None = None,
        num_classes: int | None = None,
        device: torch.device | str | None = None,
        memory: int = DEFAULT_MEMORY,
        true_samples: int | None = None,
        seed: int = 0,
        thinning: Thinning | None = None,
    ) -> None:
        _check_arguments(kind, num_classes, memory, true_samples)
        self._keep = _check_classes(keep_classes)
        names, problems = find_parameters(model, scope, head)
        check_model(model, names, problems)
        if thinning is not None and (self._keep is None or kind == "batch"):
            raise FisherError("a thinned reference needs keep_classes, and a kind other than 'batch'")
        self.kind, self.scope, self._classes, self._thinning = kind, scope, num_classes, thinning
        self._where, self._batches, self._top = device_of(model, device), 0, -1
        linear = any(isinstance(m, nn.Linear) for m in model.modules())
        self._head = find_head(model, head) if linear or head is not None else None
        strict = scope.strip() == "head"
        self._computation = Computation(model, names, kind, self._head, strict, memory, true_samples, seed)

    def add(self, x: Any, y: Tensor) -> Tensor:
        """Add one batch.

        Args:
            x: Inputs, as the model takes them.
            y: Labels, int64, shape (N,).

        Returns:
            Logits (N, C) without a graph, on the model's device; with ``thinning``, of the rows used.

        Raises:
            FisherError: If the batch does not fit the model.
        """
        where, self._batches = f"batch {self._batches}", self._batches + 1
        x, y = to_device(x, self._where), y.to(self._where)
        groups = y if self._keep is None else torch.where(torch.isin(y, self._keep.to(y.device)), y, REST)
        if self._thinning is not None and len(y):
            self._top = max(self._top, int(y.max()))
            rows = self._thinning.rows(groups)
            if len(rows) < len(y):
                check_rows(x, len(y), where)
                x, y, groups = take_rows(x, rows), y[rows], groups[rows]
        if not len(y):
            return torch.zeros(0, self._classes or 0, device=self._where)
        z = self._computation.add(x, y, groups, self._classes, where)
        self._classes = z.shape[1]
        return z

    def result(self, dtype: torch.dtype = torch.float64) -> FisherSums:
        """The sums so far, on the CPU; they are formed in float64.

        Raises:
            FisherError: If there were no data and the number of classes is not known, or if ``keep_classes``
                or a label is not below it.
        """
        classes, sums = self._classes, self._computation.sums
        if classes is None:
            if self._head is None:
                raise FisherError("the loader is empty and the model has no head; give num_classes")
            classes = self._head[1].out_features
        if self._top >= classes:
            raise FisherError(f"label {self._top}, but the model has {classes} classes, 0 to C - 1")
        for group in () if self._keep is None else (*self._keep.tolist(), REST):
            if group >= classes:
                raise FisherError(
                    f"keep_classes names class {group}, but there are {classes} classes, from 0 up"
                )
            sums.of(group)
        counts = dict(sorted(sums.counts.items()))
        if self._thinning is None:
            return FisherSums(self.kind, self.scope, classes, sums.result(dtype), counts)
        out = FisherSums(self.kind, self.scope, classes, sums.result(torch.float64), counts)
        scale = self._thinning.scale()
        out.sums[REST] = {n: t * scale for n, t in out.sums[REST].items()}
        out.counts[REST] = self._thinning.seen if scale else 0
        return out.to(dtype)


def fisher_diagonal(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    kind: str = "normalized",
    scope: str = "head",
    head: str | None = None,
    keep_classes: Collection[int] | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
    memory: int = DEFAULT_MEMORY,
    true_samples: int | None = None,
    reference_share: float | int | None = None,
    seed: int = 0,
) -> FisherSums:
    """Sums of squared gradients over a data set, per class. The model is left as it was.

    A head z = W h + b whose output is the model's needs one forward pass and no backward; other parameters
    one of both, but for uses without a formula: these take per-sample gradients by ``torch.func``, which is
    slow, and a warning names them. Memory grows with one accumulator per class kept apart, not with the data.

    Args:
        model: See `FisherCollector`, as for all that is not said here.
        loader: Batches as `batches.unpack` takes them; empty ones are skipped.
        kind: One of `types.FISHER_KINDS`; see the module's docstring.
        scope: Which parameters; see `resolve_scope`.
        head: Name of the module that gives the logits, where it is not the last ``nn.Linear``.
        keep_classes: Classes with sums of their own, all others being pooled under `types.REST`.
        num_classes: C, if known; needed when the loader is empty and the model has no head.
        device: Where the model is; batches are moved there.
        dtype: Of the result; sums are formed in float64.
        memory: Bytes that activations and temporary tensors may take; see `FisherCollector`.
        true_samples: For kind "true" outside a head: labels drawn for each sample; None: exact.
        reference_share: Estimate the sums of `types.REST` from a random part of its rows: a share (float) or
            a number (int) of them, for which the loader is gone through twice; see `fisher_sample.Thinning`.
        seed: Of the draws for ``true_samples`` and ``reference_share``.

    Returns:
        The sums, on the CPU. For "normalized" a sample with a single class has no gradient, and counts.

    Raises:
        FisherError: If the model, the arguments or the data do not allow it, with the reasons.
    """
    if not dtype.is_floating_point:
        raise FisherError(f"dtype must be a floating-point one, got {dtype}")
    fisher = FisherCollector(
        model,
        kind=kind,
        scope=scope,
        head=head,
        keep_classes=keep_classes,
        num_classes=num_classes,
        device=device,
        memory=memory,
        true_samples=true_samples,
        seed=seed,
        thinning=_thinning(loader, _check_classes(keep_classes), reference_share, seed),
    )
    with buffers_kept(model):
        for batch in loader:
            fisher.add(*unpack(batch))
    return fisher.result(dtype)


def _thinning(
    loader: Iterable[Any], apart: Tensor | None, share: float | int | None, seed: int
) -> Thinning | None:
    if share is None:
        return None
    if apart is None:
        raise FisherError("reference_share needs keep_classes: without it there is no reference")
    return Thinning(share, seed, count_rest(loader, apart) if isinstance(share, int) else None)


def _check_arguments(kind: str, num_classes: int | None, memory: int, true_samples: int | None) -> None:
    if kind not in FISHER_KINDS:
        raise FisherError(f"kind must be one of {', '.join(FISHER_KINDS)}; got {kind!r}")
    for name, value in (("num_classes", num_classes), ("memory", memory), ("true_samples", true_samples)):
        if value is not None and value < 1:
            raise FisherError(f"{name} must be at least 1, got {value!r}")


def _check_classes(keep: Collection[int] | None) -> Tensor | None:
    if keep is None:
        return None
    if any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in keep):
        raise FisherError(f"keep_classes must be whole numbers from 0 up, got {list(keep)!r}")
    return torch.tensor(sorted(set(keep)), dtype=torch.int64)
