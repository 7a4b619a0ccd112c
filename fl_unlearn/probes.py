"""What a model still knows of a class that it no longer names.

Accuracy on the forgotten class only says that its logit never wins. These ask for what lies deeper: can a
linear classifier find the class in the features (`linear_probe`), and does the model learn it again faster
than one that never saw it (`relearning_curve`)? Neither has a right answer of its own: compare with the model
retrained without the class, whose features separate classes it never saw, too.

Everything is deterministic; models are left as they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_unlearn.batches import check_rows, device_of, evaluating, filled, take_rows, to_device, unpack
from fl_unlearn.fisher import find_head
from fl_unlearn.types import ClassScores, MeasureError
from fl_unlearn.verify import score

STEPS = (3, 10, 30, 100)
"""Numbers of relearning steps after which the accuracy is taken, unless others are asked for."""


# --------------------------------------------------------------------------- features
def features(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | None = None,
    *,
    head: str | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """What a layer says of every sample, in eval mode.

    Args:
        model: Called with a batch's inputs.
        loader: Batches as `batches.unpack` takes them; empty ones are skipped.
        layer: Name of a module whose output is taken; None: the input of the head (`fisher.scope.find_head`).
        head: Name of the head, where ``layer`` is None; None: it is found.
        reduce: Makes (B, ...) activations (B, d), for example a mean over positions. None: flattens them.
        device: Where the model is; None: that of its first parameter.

    Returns:
        Features of shape (N, d) in the model's dtype and labels int64 of shape (N,), on the CPU.

    Raises:
        MeasureError: If the layer is unknown, is not called exactly once a batch, gives no tensor with one
            row a sample, or there is no sample.
    """
    where = device_of(model, device)
    module = find_head(model, head)[1] if layer is None else dict(model.named_modules()).get(layer)
    if module is None:
        known = ", ".join(repr(n) for n, _ in model.named_modules() if n)
        raise MeasureError(f"the model has no layer {layer!r}; there are {known}")
    seen: list[Any] = []
    take: Any = (lambda _, args: seen.extend(args)) if layer is None else (lambda *a: seen.append(a[2]))
    hook = (module.register_forward_pre_hook if layer is None else module.register_forward_hook)(take)
    rows, labels = [], []
    try:
        with evaluating(model):
            for x, y in filled(loader):
                seen.clear()
                model(to_device(x, where))
                rows.append(_rows(seen, layer, len(y), reduce))
                labels.append(y.cpu())
    finally:
        hook.remove()
    if not rows:
        raise MeasureError("there is no sample to take features of; the loader is empty")
    return torch.cat(rows), torch.cat(labels)


def _rows(seen: Sequence[Any], layer: str | None, count: int, reduce: Any) -> Tensor:
    what = "the head" if layer is None else f"layer {layer!r}"
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        kinds = ", ".join(type(s).__name__ for s in seen) or "nothing"
        raise MeasureError(f"{what} must be called once a batch and give one tensor; seen: {kinds}")
    out: Tensor = seen[0].flatten(1) if reduce is None and seen[0].ndim > 1 else seen[0]
    out = out if reduce is None else reduce(out)
    if out.ndim != 2 or len(out) != count:
        raise MeasureError(
            f"{what} gives features of shape {list(out.shape)} for {count} samples; ({count}, d) is needed: "
            "give reduce a function that makes it so"
        )
    return out.detach().cpu()


# --------------------------------------------------------------------------- linear probe
def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2: float = 1e-3,
    max_iterations: int = 1000,
) -> dict[int, float]:
    """Accuracy per class of a linear classifier fitted to features, forgotten classes included.

    Multinomial logistic regression (Alain and Bengio 2016, arXiv 1610.01644): minimises the mean
    cross-entropy + l2/2 ‖W‖² (no penalty on the bias) by full-batch L-BFGS in float64, from zero, over
    features standardised by the training set's mean and standard deviation. The optimum is unique, so
    neither order nor seed matters.

    Args:
        train_features: Shape (N, d), finite.
        train_labels: Shape (N,), integers from 0 up.
        test_features: Shape (M, d), finite.
        test_labels: Shape (M,); every class must occur in ``train_labels``.
        l2: Strength of the penalty, > 0.
        max_iterations: Of L-BFGS; it stops earlier at the optimum.

    Returns:
        Label to the share of its test samples that the probe finds, 0 to 1, for every class in
        ``test_labels``; the probe chooses among all classes of ``train_labels``.

    Raises:
        MeasureError: If shapes do not fit, values are not finite, or there are fewer than two classes.
    """
    _check_probe(train_features, train_labels, test_features, test_labels, l2)
    mean = train_features.double().mean(0)
    std = train_features.double().std(0, correction=0)
    # A constant feature (its spread is rounding error) says nothing, also where the test set differs.
    scale = torch.where(std > 1e-9 * mean.abs().clamp_min(1e-30), 1.0 / std, 0.0)
    classes, y = torch.unique(train_labels, return_inverse=True)
    W, b = _fit((train_features.double() - mean) * scale, y, len(classes), l2, max_iterations)
    found = classes[((test_features.double() - mean) * scale @ W.T + b).argmax(1)]
    return {int(c): float((found[test_labels == c] == c).double().mean()) for c in torch.unique(test_labels)}


def _check_probe(a: Tensor, y: Tensor, b: Tensor, z: Tensor, l2: float) -> None:
    for what, rows, labels in (("training", a, y), ("test", b, z)):
        if rows.ndim != 2 or labels.ndim != 1 or len(rows) != len(labels) or not len(rows):
            raise MeasureError(
                f"{what} features (N, d) and labels (N,) with N > 0 are needed, "
                f"got {list(rows.shape)} and {list(labels.shape)}"
            )
        if not bool(rows.isfinite().all()):
            raise MeasureError(f"the {what} features are not finite; has the model diverged?")
    if a.shape[1] != b.shape[1]:
        raise MeasureError(f"training features have {a.shape[1]} columns, test features {b.shape[1]}")
    unknown = sorted(set(z.tolist()) - set(y.tolist()))
    if unknown or len(set(y.tolist())) < 2:
        raise MeasureError(
            f"a probe needs training samples of two classes or more and of every class it is tested on; "
            f"missing: {unknown or 'a second class'}"
        )
    if not (math.isfinite(l2) and l2 > 0):
        raise MeasureError(f"l2 must be a finite number above 0 (the optimum is not unique at 0), got {l2!r}")


def _fit(x: Tensor, y: Tensor, classes: int, l2: float, iterations: int) -> tuple[Tensor, Tensor]:
    W = x.new_zeros(classes, x.shape[1], requires_grad=True)
    b = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [W, b],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x @ W.T + b, y) + l2 / 2 * W.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return W.detach(), b.detach()


# --------------------------------------------------------------------------- relearning
def relearning_curve(
    model: nn.Module,
    mix: tuple[Any, Tensor],
    test: Iterable[Any],
    *,
    steps: Sequence[int] = STEPS,
    lr: float = 0.01,
    momentum: float = 0.9,
    batch: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict[int, ClassScores]:
    """How fast a copy of the model learns a small set of samples, by SGD on the cross-entropy.

    The set is shuffled anew, from ``seed``, each time it has been gone through; what is left over of a full
    batch sits that turn out. Every parameter is trained, frozen or not: whoever has the model can thaw it.

    Args:
        model: A classifier; it is not changed.
        mix: Inputs and labels of the samples to learn from: the forgotten class among retained ones.
        test: Batches to score on, iterated once per entry of ``steps``.
        steps: Numbers of steps after which to score; 0 is the model as it is.
        lr: Learning rate.
        momentum: Momentum of SGD.
        batch: Samples a step.
        seed: Of the order of the samples.
        device: Where the model is; None: that of its first parameter.

    Returns:
        Number of steps to scores per class on ``test``, ascending.

    Raises:
        MeasureError: If there is nothing to learn from, or a number is out of range.
    """
    if not steps or min(steps) < 0:
        raise MeasureError(f"relearning needs steps from 0 up, got {list(steps)}")
    wanted, out = set(steps), {}
    for done, student in enumerate(_students(model, mix, lr, momentum, batch, seed, device)):
        if done in wanted:
            out[done] = score(student, test, device=device)
        if done == max(wanted):
            break
    return out


def relearning_time(
    model: nn.Module,
    mix: tuple[Any, Tensor],
    test: Iterable[Any],
    accuracy: float,
    *,
    most: int = 100,
    every: int = 1,
    lr: float = 0.01,
    momentum: float = 0.9,
    batch: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> int | None:
    """How many steps of `relearning_curve` it takes until the accuracy on ``test`` is at least ``accuracy``.

    Args:
        model: A classifier; it is not changed.
        mix: Inputs and labels of the samples to learn from.
        test: Batches to score on, iterated once per look.
        accuracy: What is to be reached, 0 to 1.
        most: The last step.
        every: Steps from one look to the next; the first look is before any step.
        lr: Learning rate.
        momentum: Momentum of SGD.
        batch: Samples a step.
        seed: Of the order of the samples.
        device: Where the model is; None: that of its first parameter.

    Returns:
        The number of steps at the first look that finds the accuracy; None if the look at ``most`` does not.

    Raises:
        MeasureError: If there is nothing to learn from or to score on, or a number is out of range.
    """
    if every < 1 or most < 0 or most % every:
        raise MeasureError(f"most must be a multiple of every, which must be > 0; got {most} and {every}")
    for done, student in enumerate(_students(model, mix, lr, momentum, batch, seed, device)):
        if done % every == 0:
            found = score(student, test, device=device).accuracy()
            if found is None:
                raise MeasureError("there is no sample to score relearning on; the test batches are empty")
            if found >= accuracy:
                return done
        if done == most:
            break
    return None


def _students(
    model: nn.Module,
    mix: tuple[Any, Tensor],
    lr: float,
    momentum: float,
    batch: int,
    seed: int,
    device: torch.device | str | None,
) -> Iterator[nn.Module]:
    """The copy that learns: as it is, then after one step, after two steps..."""
    x, y = unpack(mix)
    check_rows(x, len(y), "mix")
    if not len(y) or batch < 1:
        raise MeasureError(
            f"relearning needs samples and a batch of at least 1; got {len(y)} samples, batch={batch}"
        )
    where = device_of(model, device)
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
    yield student
    for rows in _order(len(y), batch, seed):
        student.train()
        with torch.enable_grad():
            optimizer.zero_grad()
            logits = student(to_device(take_rows(x, rows), where))
            torch.autograd.backward(functional.cross_entropy(logits, y[rows].to(where)))
        optimizer.step()
        yield student


def _order(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = min(batch, count)
    while True:
        # A remainder of one sample would stop batch normalisation.
        yield from torch.randperm(count, generator=generator)[: count - count % size].reshape(-1, size)
