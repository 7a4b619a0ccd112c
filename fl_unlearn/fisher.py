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
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batches import buffers_kept, device_of, module_problem, to_device, unpack
from .fisher_kernels import Computation
from .fisher_sums import FisherSums as FisherSums
from .types import FISHER_KINDS, REST, FisherError


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
    chunk_size: int | None = None,
) -> FisherSums:
    """Sums of squared gradients over a data set, per class. The model is left as it was.

    A head z = W h + b whose output is the model's needs one forward pass and no backward; other scopes, and
    heads that are tied or used twice, take per-sample gradients by ``torch.func``. Memory grows with one
    accumulator per class kept apart, not with the data.

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
        chunk_size: Samples differentiated at once outside a head; None: about 256 MB of gradients.

    Returns:
        The sums, on the CPU. For "normalized" a sample with a single class has no gradient, and counts.

    Raises:
        FisherError: If the model, the arguments or the data do not allow it, with the reasons.
    """
    keep = _check_arguments(kind, dtype, keep_classes, num_classes, chunk_size)
    names, problems = _resolve(model, scope, head)
    check_model(model, names, problems)
    where = device_of(model, device)
    linear = any(isinstance(m, nn.Linear) for m in model.modules())
    found = find_head(model, head) if linear or head is not None else None
    computation = Computation(model, names, kind, found, scope.strip() == "head", chunk_size)
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
    chunk_size: int | None,
) -> Tensor | None:
    if kind not in FISHER_KINDS:
        raise FisherError(f"kind must be one of {', '.join(FISHER_KINDS)}; got {kind!r}")
    if not dtype.is_floating_point:
        raise FisherError(f"dtype must be a floating-point one, got {dtype}")
    for name, value in (("num_classes", num_classes), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise FisherError(f"{name} must be at least 1, got {value!r}")
    if keep is None:
        return None
    if any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in keep):
        raise FisherError(f"keep_classes must be whole numbers from 0 up, got {list(keep)!r}")
    return torch.tensor(sorted(set(keep)), dtype=torch.int64)
