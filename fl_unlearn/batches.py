"""One batch of a data loader: its inputs and class labels, and the logits that a model gives for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .types import FisherError

LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "y")
"""Keys under which a dict batch may hold its labels, the first one present being taken."""

INPUT_KEYS = ("img", "image", "images", "pixel_values", "x", "input_ids", "features", "inputs")
"""Keys under which a dict batch may hold its inputs; at most one of them may be present."""


def unpack(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and labels of one batch.

    Args:
        batch: A pair ``(inputs, labels)``, or a mapping with its labels under one of `LABEL_KEYS` and its
            inputs under one of `INPUT_KEYS`, or else as the only other tensor.

    Returns:
        The inputs as they came, and the labels as int64 of shape (N,), each >= 0.

    Raises:
        FisherError: If the batch has another form, or its labels are not whole numbers from 0 up.
    """
    if isinstance(batch, Mapping):
        inputs, labels = _from_mapping(batch)
    elif isinstance(batch, tuple | list):
        if len(batch) != 2:
            raise FisherError(f"a batch must be a pair (inputs, labels), got {len(batch)} elements")
        inputs, labels = batch
    else:
        raise FisherError(f"a batch must be a pair (inputs, labels) or a dict, got {type(batch).__name__}")
    return inputs, check_labels(labels)


def check_labels(labels: Any) -> Tensor:
    """The labels of a batch as int64 of shape (N,).

    Raises:
        FisherError: If they are no tensor, not of an integer dtype, not 1-D, or any is negative.
    """
    if not isinstance(labels, Tensor):
        raise FisherError(f"labels must be a tensor, got {type(labels).__name__}; use torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FisherError(f"labels must be class numbers of an integer dtype, got {labels.dtype}")
    if labels.ndim != 1:
        raise FisherError(
            f"labels must have shape (N,), got {list(labels.shape)}; one-hot: use argmax(dim=1)"
        )
    out: Tensor = labels.long()
    if out.numel() and int(out.min()) < 0:
        raise FisherError(f"labels must be 0 or more, got {int(out.min())}; leave such rows out")
    return out


def map_tensors(fn: Callable[[Tensor], Tensor], x: Any) -> Any:
    """``x`` with ``fn`` applied to every tensor in it; looks into tuples, lists and mappings."""
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, Mapping):
        return {k: map_tensors(fn, v) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(map_tensors(fn, v) for v in x))
    if isinstance(x, tuple | list):
        return type(x)(map_tensors(fn, v) for v in x)
    return x


def tensors_in(x: Any) -> Iterator[Tensor]:
    """Every tensor in ``x``, in order; looks into tuples, lists and mappings."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        for v in x.values():
            yield from tensors_in(v)
    elif isinstance(x, tuple | list):
        for v in x:
            yield from tensors_in(v)


def to_device(x: Any, device: torch.device | str) -> Any:
    """``x`` with every tensor in it on ``device``; looks into tuples, lists and mappings."""
    return map_tensors(lambda t: t.to(device), x)


def take_rows(x: Any, rows: Tensor | slice) -> Any:
    """``x`` with only ``rows`` of the first dimension of every tensor in it."""
    return map_tensors(lambda t: t[rows.to(t.device) if isinstance(rows, Tensor) else rows], x)


def check_rows(x: Any, n: int, where: str) -> None:
    """Check that every tensor in ``x`` has one row a sample, ``n`` in all; ``where`` names the batch.

    Raises:
        FisherError: If one has not.
    """
    bad = [list(t.shape) for t in tensors_in(x) if t.shape[:1] != (n,)]
    if bad:
        raise FisherError(
            f"{where}: inputs need one row a sample, {n}, as first dimension; got shape {bad[0]}"
        )


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let torch draw from this seed in the block; its random state, also a GPU's, is as before afterwards.

    Args:
        seed: For the CPU's generator and for that of ``device``.
        device: Where the block computes.
    """
    where = torch.device(device)
    gpus = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def device_of(model: nn.Module, device: torch.device | str | None = None) -> torch.device:
    """The device of the model's first parameter, which must be ``device`` where that is given.

    Raises:
        FisherError: If the model is on another device.
    """
    own = next(model.parameters()).device
    asked = own if device is None else torch.device(device)
    if asked.type != own.type or asked.index not in (None, own.index):
        raise FisherError(
            f"device={str(asked)!r}, but the model is on '{own}'; move it with model.to(device)"
        )
    return own


def logits_of(model: nn.Module, x: Any) -> Tensor:
    """What the model returns for the inputs ``x``, computed without a graph.

    Raises:
        FisherError: If it is no tensor.
    """
    with torch.no_grad():
        return answer_of(model, x)


def answer_of(model: nn.Module, x: Any) -> Tensor:
    """What the model returns for the inputs ``x``.

    Raises:
        FisherError: If it is no tensor.
    """
    z = model(x)
    if not isinstance(z, Tensor):
        raise FisherError(f"the model must return its logits as a tensor, got {type(z).__name__}; wrap it so")
    return z


def check_logits(z: Tensor, y: Tensor, classes: int | None, where: str) -> None:
    """Check the logits of a batch that has at least one row.

    Args:
        z: Logits, to be finite and of shape (N, C).
        y: Labels, shape (N,), to be below C.
        classes: What C must be, or None.
        where: Name of the batch, for the message.

    Raises:
        FisherError: If anything does not fit.
    """
    if z.ndim != 2:
        raise FisherError(f"{where}: logits must have shape (N, C), the model returned {list(z.shape)}")
    if z.shape[0] != len(y):
        raise FisherError(f"{where}: {z.shape[0]} rows of logits, but {len(y)} labels")
    if classes is not None and z.shape[1] != classes:
        raise FisherError(f"{where}: {z.shape[1]} logits a row, but {classes} classes were expected")
    if not bool(z.isfinite().all()):
        row = int((~z.isfinite()).any(1).nonzero()[0])
        raise FisherError(f"{where}: the logits of row {row} are not finite; has the model diverged?")
    if int(y.max()) >= z.shape[1]:
        raise FisherError(
            f"{where}: label {int(y.max())}, but the model has {z.shape[1]} classes, 0 to C - 1"
        )


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards, in identity and value, whatever the model's forward does to it.

    So are other tensors that modules hold, in identity: ``nn.utils.weight_norm`` leaves a weight with a
    graph, with which a model can no longer be copied.
    """
    kept = [
        (m, name, b, None if b is None else b.detach().clone())
        for m in model.modules()
        for name, b in m._buffers.items()
    ]
    held = {m: _tensors_of(m) for m in model.modules()}
    try:
        yield
    finally:
        for module, tensors in held.items():
            for name in _tensors_of(module).keys() - tensors.keys():
                del module.__dict__[name]
            module.__dict__.update(tensors)
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a module holds as plain attributes."""
    return {n: t for n, t in module.__dict__.items() if isinstance(t, Tensor)}


def filled(loader: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """The batches of ``loader`` that have a sample, as `unpack` gives them."""
    for batch in loader:
        x, y = unpack(batch)
        if len(y):
            yield x, y


def module_problem(m: nn.Module) -> str | None:
    """Why one module, in its present mode, mixes samples or answers at random, with the cure; or None."""
    norm = isinstance(m, nn.modules.batchnorm._NormBase)
    if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats:
        return "mixes the samples of a batch in every mode: set track_running_stats=True or use GroupNorm"
    if not m.training:
        return None
    if norm and getattr(m, "track_running_stats", False):
        return "is in training mode and uses or updates batch statistics: call model.eval()"
    rate = getattr(m, "p", 0.0) if isinstance(m, nn.modules.dropout._DropoutNd) else 0.0
    if isinstance(m, nn.RNNBase | nn.MultiheadAttention):
        rate = m.dropout
    if rate > 0 or isinstance(m, nn.RReLU):
        return "is in training mode and draws at random: call model.eval()"
    return None


@contextmanager
def evaluating(model: nn.Module, hooks: Iterable[RemovableHandle] = ()) -> Iterator[None]:
    """In eval mode and without a graph; afterwards modes and buffers are as before, and ``hooks`` removed.

    Raises:
        FisherError: If a module mixes samples even then.
    """
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        problems = [f"{n or 'the model'} {p}" for n, m in model.named_modules() if (p := module_problem(m))]
        if problems:
            raise FisherError("; ".join(problems))
        with torch.no_grad(), buffers_kept(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def _from_mapping(batch: Mapping[Any, Any]) -> tuple[Any, Any]:
    keys = ", ".join(repr(k) for k in batch) or "none"
    label = next((k for k in LABEL_KEYS if k in batch), None)
    if label is None:
        raise FisherError(
            f"no labels in the batch: one of {', '.join(LABEL_KEYS)} is needed, its keys are {keys}"
        )
    known = [k for k in INPUT_KEYS if k in batch]
    if not known:
        labels = {*LABEL_KEYS, "coarse_label"}
        known = [k for k, v in batch.items() if k not in labels and isinstance(v, Tensor)]
    if len(known) != 1:
        raise FisherError(
            f"exactly one input is needed in the batch ({', '.join(INPUT_KEYS)}, or the only tensor beside "
            f"the labels), {len(known)} fit; its keys are {keys}; let the loader give pairs (inputs, labels)"
        )
    mask = batch.get("attention_mask")
    if known[0] == "input_ids" and isinstance(mask, Tensor) and not bool(mask.all()):
        raise FisherError(
            "the batch masks some of its 'input_ids' by 'attention_mask', which a model called with one "
            "input would not see; let the loader give pairs (inputs, labels), inputs being all it needs"
        )
    return batch[known[0]], batch[label]


def sample(batches: Iterable[Any], classes: Collection[int], most: int) -> list[tuple[Any, Tensor]]:
    """The first samples of the named classes and of all others, at most ``most`` of either.

    Args:
        batches: Batches as `unpack` takes them.
        classes: Labels of the first group; all others are the second.
        most: Samples to keep of each group, >= 0; 0: all.

    Returns:
        Batches (inputs, labels), in memory: they can be gone through repeatedly, and are the same each time.
    """
    wanted = torch.tensor(sorted(classes), dtype=torch.int64)
    left = {True: most or sys.maxsize, False: most or sys.maxsize}
    kept = []
    for batch in batches:
        x, y = unpack(batch)
        named = torch.isin(y, wanted.to(y.device))
        rows = []
        for group in (True, False):
            own = (named == group).nonzero().squeeze(1)[: left[group]]
            left[group] -= len(own)
            rows.append(own)
        chosen = torch.cat(rows).sort().values
        if len(chosen):
            kept.append((x, y) if len(chosen) == len(y) else (take_rows(x, chosen), y[chosen]))
        if not any(left.values()):
            break
    return kept
