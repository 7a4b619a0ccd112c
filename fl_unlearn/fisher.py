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

import difflib
import fnmatch
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .batches import buffers_kept, device_of, module_problem, to_device, unpack
from .fisher_kernels import Computation
from .types import FISHER_KINDS, REST, FisherError


# --------------------------------------------------------------------------- sums that add
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
        out = {n: sum((self.sums[g][n] for g in chosen), torch.zeros_like(t)) for n, t in shapes.items()}
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


# --------------------------------------------------------------------------- which parameters
def find_head(model: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """The linear layer that gives the logits: the last ``nn.Linear`` registered, or the one named.

    Raises:
        FisherError: If there is none, or ``name`` is not one.
    """
    linear = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
    if not linear:
        raise FisherError("the model has no nn.Linear to be its head; use scope 'all' or parameter names")
    if name is None:
        name = list(linear)[-1]
    if name not in linear:
        raise FisherError(
            f"head={name!r} is no nn.Linear of the model; there are {', '.join(map(repr, linear))}"
        )
    return name, linear[name]


def resolve_scope(model: nn.Module, scope: str, head: str | None = None) -> list[str]:
    """Names of the trainable parameters in a scope, in the order of ``model.state_dict()``.

    Args:
        model: The model.
        scope: "head", "all", or comma-separated parameter names or glob patterns, such as "fc1.*,fc2.*".
        head: Name of the head, where it is not the last ``nn.Linear``.

    Returns:
        The names; a tied parameter is there under every name it has.

    Raises:
        FisherError: If the scope, or one of its patterns, has nothing trainable.
    """
    names, problems = _resolve(model, scope, head)
    if problems:
        raise FisherError("; ".join(problems))
    return names


def _resolve(model: nn.Module, scope: str, head: str | None) -> tuple[list[str], list[str]]:
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted: set[int] = set()
    problems = []
    if scope.strip() == "head":
        try:
            groups = {"the head": list(find_head(model, head)[1].parameters())}
        except FisherError as e:
            return [], [str(e)]
    elif scope.strip() == "all":
        groups = {"the model": list(named.values())}
    else:
        patterns = [p.strip() for p in scope.split(",") if p.strip()]
        hit = fnmatch.fnmatchcase
        groups = {f"'{p}'": [v for n, v in named.items() if n == p or hit(n, p)] for p in patterns}
        if not patterns:
            problems.append(f"the scope {scope!r} is empty; use 'head', 'all' or names such as 'fc1.*,fc2.*'")
    for what, parameters in groups.items():
        trainable = {id(p) for p in parameters if p.requires_grad}
        wanted |= trainable
        if not parameters and what.startswith("'"):
            near = difflib.get_close_matches(what.strip("'"), list(named), n=4, cutoff=0.3) or list(named)[:4]
            problems.append(f"{what} matches no parameter; the nearest are {', '.join(map(repr, near))}")
        elif not trainable:
            problems.append(f"{what} has no trainable parameter: set requires_grad or choose another scope")
    return [n for n in model.state_dict() if n in named and id(named[n]) in wanted], problems


def check_model(model: nn.Module, names: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuse a model whose samples would not be independent or repeatable, with every reason at once.

    Args:
        model: The model, in the mode it will be used in.
        names: The parameters in scope.
        also: Reasons found elsewhere, to be listed too.

    Raises:
        FisherError: If there is any; each with its cure.
    """
    reasons = list(also)
    for name, module in model.named_modules():
        problem = module_problem(module)
        if problem:
            reasons.append(f"{type(module).__name__} '{name}' {problem}")
    named = dict(model.named_parameters(remove_duplicate=False))
    for n in names:
        if n not in named:
            reasons.append(f"'{n}' is no parameter of the model")
        elif nn.parameter.is_lazy(named[n]):
            reasons.append(f"parameter '{n}' has no shape yet: run one batch through the model first")
        elif not named[n].is_floating_point():
            reasons.append(f"parameter '{n}' is {named[n].dtype}, not real floating point: leave it out")
    if not names and not also:
        reasons.append("no trainable parameter is in scope: set requires_grad or choose another scope")
    if reasons:
        raise FisherError("the Fisher diagonal cannot be computed:\n" + "\n".join(f"- {r}" for r in reasons))


# --------------------------------------------------------------------------- the diagonal
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
    memory: int = 512 * 2**20,
    true_samples: int | None = None,
    seed: int = 0,
) -> FisherSums:
    """Sums of squared gradients over a data set, per class. The model is left as it was.

    A head z = W h + b whose output is the model's needs one forward pass and no backward; other parameters
    one of both, but for uses without a formula: these take per-sample gradients by ``torch.func``, which is
    slow, and a warning names them. Memory grows with one accumulator per class kept apart, not with the data.

    Args:
        model: Called with a batch's inputs; returns logits of shape (N, C). In eval mode.
        loader: Batches as `batches.unpack` takes them; empty ones are skipped.
        kind: One of `types.FISHER_KINDS`; see the module's docstring.
        scope: Which parameters; see `resolve_scope`.
        head: Name of the module that gives the logits, where it is not the last ``nn.Linear``.
        keep_classes: Classes with sums of their own, all others being pooled under `types.REST`; each of
            these groups is in the result even when it has no sample. None: every class that occurs.
        num_classes: C, if known; needed when the loader is empty and the model has no head.
        device: Where the model is; batches are moved there. None: that of the model's first parameter.
        dtype: Of the result; sums are formed in float64.
        memory: Bytes that activations and temporary tensors may take outside a head, beside the model, the
            sums and one sample's gradients; larger batches are taken in parts, of one sample at least.
        true_samples: For "true" outside a head: labels drawn for each sample, whose mean is unbiased; each
            takes a backward pass. None, or as many as classes: exact, with a backward pass for each class.
        seed: Of these draws.

    Returns:
        The sums, on the CPU. For "normalized" a sample with a single class has no gradient, and counts.

    Raises:
        FisherError: If the model, the arguments or the data do not allow it, with the reasons.
    """
    keep = _check_arguments(kind, dtype, keep_classes, num_classes, memory, true_samples)
    names, problems = _resolve(model, scope, head)
    check_model(model, names, problems)
    where = device_of(model, device)
    linear = any(isinstance(m, nn.Linear) for m in model.modules())
    found = find_head(model, head) if linear or head is not None else None
    strict = scope.strip() == "head"
    computation = Computation(model, names, kind, found, strict, memory, true_samples, seed)
    classes = num_classes
    with buffers_kept(model):
        for i, batch in enumerate(loader):
            x, y = unpack(batch)
            if len(y) == 0:
                continue
            x, y = to_device(x, where), y.to(where)
            groups = y if keep is None else torch.where(torch.isin(y, keep.to(where)), y, REST)
            classes = computation.add(x, y, groups, classes, f"batch {i}").shape[1]
    if classes is None:
        if found is None:
            raise FisherError("the loader is empty and the model has no head; give num_classes")
        classes = found[1].out_features
    for group in () if keep is None else (*keep.tolist(), REST):
        if group >= classes:
            raise FisherError(f"keep_classes names class {group}, but there are {classes} classes, from 0 up")
        computation.sums.of(group)
    sums = computation.sums
    return FisherSums(kind, scope, classes, sums.result(dtype), dict(sorted(sums.counts.items())))


def _check_arguments(
    kind: str,
    dtype: torch.dtype,
    keep: Collection[int] | None,
    num_classes: int | None,
    memory: int,
    true_samples: int | None,
) -> Tensor | None:
    if kind not in FISHER_KINDS:
        raise FisherError(f"kind must be one of {', '.join(FISHER_KINDS)}; got {kind!r}")
    if not dtype.is_floating_point:
        raise FisherError(f"dtype must be a floating-point one, got {dtype}")
    for name, value in (("num_classes", num_classes), ("memory", memory), ("true_samples", true_samples)):
        if value is not None and value < 1:
            raise FisherError(f"{name} must be at least 1, got {value!r}")
    if keep is None:
        return None
    if any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in keep):
        raise FisherError(f"keep_classes must be whole numbers from 0 up, got {list(keep)!r}")
    return torch.tensor(sorted(set(keep)), dtype=torch.int64)
