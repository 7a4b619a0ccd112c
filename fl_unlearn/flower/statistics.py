"""A client's answer about hidden layers, as a message and back: which can be erased in, and their statistics.

It comes from the other side and is untrusted: `read` checks all of it before anything is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fl_unlearn.erase_layers import Hidden, Statistics
from fl_unlearn.flower import records
from fl_unlearn.layer_stats import MAX_WIDTH, LayerSums
from fl_unlearn.types import SIGNATURE_DTYPES, AnswerError, Signature, UnlearnError

ARRAYS = "unlearn.statistics"


def write(client: str, answer: Statistics, seconds: float) -> RecordDict:
    """A client's answer as a message; values travel as float64."""
    labels = sorted(answer.counts)
    tensors = {f"{i}/{key}": t for i, s in enumerate(answer.sums) for key, t in s.to_tensors().items()}
    record = records.head(
        client=client,
        seconds=seconds,
        layers=[h.layer for h in answer.layers],
        weights=[h.weight for h in answer.layers],
        shifts=[h.shift for h in answer.layers],
        roles=[h.shift_is for h in answer.layers],
        labels=labels,
        counts=[s.counts[g] for s in answer.sums for g in labels],
    )
    return RecordDict({records.HEAD: record, ARRAYS: records.to_arrays(tensors)})


def read(
    content: RecordDict, *, groups: Sequence[int], models: int, position: int, model: Signature
) -> Statistics:
    """A client's answer, checked against what was asked and against the model.

    Args:
        content: The answer.
        groups: The groups that must appear.
        models: How many models were sent.
        position: Which of the layers is in question.
        model: The model's tensors.

    Raises:
        AnswerError: If anything about the answer is malformed, implausible or not what was asked.
    """
    record = records.read_head(content)
    arrays = content.array_records.get(ARRAYS, ArrayRecord())
    layers = _layers(record, model)
    if not layers:
        if arrays:
            raise AnswerError("the answer has statistics, but names no layer")
        return Statistics()
    if position >= len(layers):
        raise AnswerError(f"asked about layer {position + 1}, but the client knows of {len(layers)}")
    labels, counts = records.ints(record, "labels"), records.ints(record, "counts")
    if len(set(labels)) != len(labels) or set(labels) != set(groups) or len(counts) != models * len(labels):
        raise AnswerError(
            f"asked for the groups {sorted(groups)} in {models} models, got {labels[:20]} with {len(counts)} "
            "counts"
        )
    if any(not 0 <= c <= records.MAX_COUNT for c in counts):
        raise AnswerError(f"counts must lie between 0 and {records.MAX_COUNT}, got {counts[:20]}")
    width, sums = layers[position].width, []
    expected = {f"{i}/{key}" for i in range(models) for key in _shapes(width, labels)}
    if expected != set(arrays):
        raise AnswerError(
            f"the statistics' arrays are not those asked for: {sorted(expected ^ set(arrays))[:4]}"
        )
    for i in range(models):
        own = dict(zip(labels, counts[i * len(labels) : (i + 1) * len(labels)], strict=True))
        sums.append(_sums(arrays, i, width, own))
    return Statistics(tuple(layers), tuple(sums))


def _layers(record: ConfigRecord, model: Signature) -> list[Hidden]:
    columns = [records.list_of(record, key) for key in ("layers", "weights", "shifts", "roles")]
    if len({len(c) for c in columns}) != 1 or any(not isinstance(v, str) for c in columns for v in c):
        raise AnswerError("layers, weights, shifts and roles must be lists of as many texts")
    found = []
    for layer, weight, shift, role in zip(*columns, strict=True):
        if weight not in model or shift not in model or role not in ("bias", "running_mean"):
            raise AnswerError(f"the layer {layer[:50]!r} has tensors or a role that the model does not know")
        own, constant = model[weight], model[shift]
        dtypes = [SIGNATURE_DTYPES.get(s.dtype, torch.int64) for s in (own, constant)]
        width = own.shape[0] if len(own.shape) > 1 else 0
        if not (
            0 < width <= MAX_WIDTH and constant.shape == (width,) and all(t.is_floating_point for t in dtypes)
        ):
            raise AnswerError(
                f"{weight!r} is {list(own.shape)} and {shift!r} {list(constant.shape)}: no floating-point "
                f"tensors of one layer, at most {MAX_WIDTH} wide"
            )
        found.append(Hidden(layer, weight, shift, role, width))
    tensors = [n for h in found for n in (h.weight, h.shift)]
    if len(set(tensors)) < len(tensors) or len({h.layer for h in found}) < len(found):
        raise AnswerError("the answer names a layer or a tensor twice")
    return found


def _shapes(width: int, labels: Sequence[int]) -> dict[str, tuple[int, ...]]:
    return {"second": (width * (width + 1) // 2,), **{f"sum/{g}": (width,) for g in labels}}


def _sums(arrays: ArrayRecord, number: int, width: int, counts: dict[int, int]) -> LayerSums:
    tensors = dict[str, torch.Tensor]()
    for key, shape in _shapes(width, list(counts)).items():
        array: Any = arrays[f"{number}/{key}"]
        if tuple(array.shape) != shape:
            raise AnswerError(f"the statistics' {key!r} is {list(array.shape)}, not {list(shape)}")
        tensors[key] = records.tensor_of(key, array)
        if tensors[key].dtype != torch.float64:
            raise AnswerError(f"the statistics' {key!r} is {tensors[key].dtype}; float64 is needed")
    try:
        sums = LayerSums.from_tensors(counts, tensors)
        sums.validate()
    except UnlearnError as e:
        raise AnswerError(str(e)) from e
    return sums
