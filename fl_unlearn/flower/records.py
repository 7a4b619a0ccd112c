"""The wire format: every message, key and conversion between tensors and Flower's records, in one place.

What comes from the other side is untrusted: each ``read_*`` function checks types, names, shapes,
finiteness, sign and size, and raises before anything is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.evidence import UNIDENTIFIED
from fl_unlearn.fisher import FisherSums
from fl_unlearn.flower import plain_arrays
from fl_unlearn.types import (
    REST,
    AnswerError,
    ClassScores,
    ModelMismatchError,
    Signature,
    TensorSpec,
    UnlearnError,
    UpdateError,
)

PROTOCOL = 1
IDENTITY, FISHER, SCORE, APPLY = "unlearn_identity", "unlearn_fisher", "unlearn_score", "unlearn_apply"
STATISTICS, MEASURE, KEYS = "unlearn_statistics", "unlearn_measure", "unlearn_keys"
ACTIONS = (IDENTITY, FISHER, SCORE, APPLY, STATISTICS, MEASURE, KEYS)

HEAD = "unlearn"
"""Name of the ConfigRecord that every message of the plug-in carries."""
MODEL, FISHER_ARRAYS, UPDATE = "unlearn.model", "unlearn.fisher", "unlearn.update"
FORGOTTEN = "unlearn.forgotten"
"""Key of a ConfigRecord in training messages, or where they have none its name: tells what was forgotten."""
UPDATES = "unlearn.updates"
"""Key, beside `FORGOTTEN`, that tells which updates the message's model has had."""

MAX_NAME = 150
MAX_COUNT = 10**12
MAX_CLASSES = 10**7
MAX_LOSS = 1e200
"""Of one client's summed loss: losses are added, and a sum must stay finite whatever clients say."""


# --------------------------------------------------------------------------- tensors
def to_arrays(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Tensors as an ArrayRecord, in their order."""
    return ArrayRecord({n: Array(t.detach().cpu().contiguous().numpy()) for n, t in state.items()})


def to_state(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """An ArrayRecord as tensors.

    Raises:
        AnswerError: If an array's bytes are not a plain numeric array of its declared shape.
    """
    return {name: tensor_of(name, array) for name, array in arrays.items()}


def signature(arrays: ArrayRecord) -> dict[str, TensorSpec]:
    """Names, declared shapes and dtypes of an ArrayRecord, without decoding it."""
    return {n: TensorSpec(tuple(a.shape), a.dtype) for n, a in arrays.items()}


def tensor_of(name: str, array: Array) -> torch.Tensor:
    """One array of a record as a tensor.

    Raises:
        AnswerError: If its bytes are not a plain numeric array of its declared shape.
    """
    try:
        return torch.from_numpy(plain_arrays.read(array))
    except Exception as e:  # NumPy passes on what tokenizer and allocator raise
        raise AnswerError(f"the array {name!r} cannot be read: {e}") from e


def size_of(content: RecordDict) -> int:
    """Bytes of a message's content: arrays as serialised, configuration as JSON text."""
    total = sum(len(a.data) + len(n) for rec in content.array_records.values() for n, a in rec.items())
    for config in content.config_records.values():
        total += sum(len(v) if isinstance(v, bytes) else len(_json(v)) for v in config.values())
    return total


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda data: data.decode("latin-1"))  # lists may hold bytes


# --------------------------------------------------------------------------- requests to clients
def head(**values: Any) -> ConfigRecord:
    """The ConfigRecord of a message of the plug-in."""
    return ConfigRecord({"protocol": PROTOCOL, **values})


def read_head(content: RecordDict) -> ConfigRecord:
    """The plug-in's ConfigRecord of a message.

    Raises:
        AnswerError: If it is missing, or written by another version of the protocol.
    """
    record = content.config_records.get(HEAD)
    if record is None:
        raise AnswerError(f"the message has no {HEAD!r} record; is fl-unlearn attached on that side?")
    if record.get("protocol") != PROTOCOL:
        raise AnswerError(
            f"the message speaks protocol {record.get('protocol')!r}, this side {PROTOCOL}; "
            "install the same version of fl-unlearn on the server and the clients"
        )
    return record


def failure(message: Message, client: str, reason: str) -> Message:
    """A client's answer that it cannot do what it was asked, in words."""
    return Message(RecordDict({HEAD: head(client=client, error=reason)}), reply_to=message)


def read_client(content: RecordDict) -> str:
    """The name of the client that answers.

    Raises:
        AnswerError: If the answer reports a failure, or has no name.
    """
    record = read_head(content)
    if "error" in record:
        raise AnswerError(str(record["error"])[:2000] or "the client failed without a reason")
    name = record.get("client")
    if not isinstance(name, str) or not _is_name(name):
        raise AnswerError(
            f"the answer names its client {str(name)[:50]!r}; a text of 1 to {MAX_NAME} printable characters "
            "is needed (fewer outside ASCII) that does not begin with 'node-'"
        )
    return name


def _is_name(name: str) -> bool:
    """Whether a name can be stored, be part of a file's name, and be told from a stand-in."""
    printable = name.isprintable() and bool(name.strip())
    return printable and len(quote(name, safe="")) <= MAX_NAME and not name.startswith(UNIDENTIFIED)


# --------------------------------------------------------------------------- updates
def write_update(update: DampeningUpdate) -> dict[str, Any]:
    """An update as records of a message's content."""
    return {
        UPDATE: to_arrays(update.to_tensors()),
        UPDATE + ".header": ConfigRecord({"json": update.header()}),
    }


def read_update(content: RecordDict) -> DampeningUpdate:
    """The update that a message carries, checked.

    Raises:
        UpdateError: If it is missing or malformed.
    """
    try:
        arrays = content.array_records[UPDATE]
        header = str(content.config_records[UPDATE + ".header"]["json"])
        return DampeningUpdate.from_tensors(header, to_state(arrays))
    except (KeyError, AnswerError) as e:
        raise UpdateError(f"the message carries no readable update: {e}") from e


# --------------------------------------------------------------------------- Fisher sums
def write_fisher(client: str, sums: FisherSums, seconds: float, *, ledger: bool = False) -> RecordDict:
    """A client's Fisher answer, from its ``ledger`` or computed now; values travel as float32."""
    labels = sorted(sums.counts)
    tensors = {f"{g}/{n}": t.float() for g in labels for n, t in sums.sums[g].items()}
    record = head(
        client=client,
        kind=sums.kind,
        scope=sums.scope,
        **{"num-classes": sums.num_classes, "seconds": seconds, "ledger": ledger},
        labels=labels,
        counts=[sums.counts[g] for g in labels],
    )
    return RecordDict({HEAD: record, FISHER_ARRAYS: to_arrays(tensors)})


def read_fisher(
    content: RecordDict, *, kind: str, scope: str, groups: Sequence[int], model: Signature
) -> FisherSums:
    """A client's Fisher answer, checked against what was asked and against the model.

    Args:
        content: The answer.
        kind: The Fisher kind that was asked for.
        scope: The scope that was asked for.
        groups: The groups that may appear.
        model: The model's tensors; each Fisher must name some of them, in their shapes.

    Raises:
        AnswerError: If anything about the answer is malformed, implausible or not what was asked.
    """
    record = read_head(content)
    if record.get("kind") != kind or record.get("scope") != scope:
        raise AnswerError(
            f"asked for the {kind} Fisher of {scope!r}, got {record.get('kind')!r} of {record.get('scope')!r}"
        )
    labels, counts = ints(record, "labels"), ints(record, "counts")
    num_classes = record.get("num-classes")
    if not isinstance(num_classes, int) or not 0 < num_classes <= MAX_CLASSES:
        raise AnswerError(f"the number of classes is {num_classes!r}")
    if len(labels) != len(counts) or set(labels) != set(groups) or len(set(labels)) != len(labels):
        raise AnswerError(
            f"asked for the groups {sorted(groups)}, got {labels[:20]} with {len(counts)} counts"
        )
    if any(not 0 <= c <= MAX_COUNT for c in counts):
        raise AnswerError(f"sample counts must lie between 0 and {MAX_COUNT}, got {counts[:20]}")
    arrays = content.array_records.get(FISHER_ARRAYS, ArrayRecord())
    sums: dict[int, dict[str, torch.Tensor]] = {g: {} for g in labels}
    by_text = {str(g): g for g in labels}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        if group not in by_text or name not in model:
            raise AnswerError(
                f"the Fisher has an entry {key!r} that was not asked for or that the model lacks"
            )
        if tuple(array.shape) != model[name].shape:
            raise AnswerError(f"the Fisher of {name!r} is {list(array.shape)}, not {list(model[name].shape)}")
        tensor = tensor_of(key, array)
        if not tensor.is_floating_point():
            raise AnswerError(f"the Fisher of {name!r} is {tensor.dtype}; floating-point values are needed")
        sums[by_text[group]][name] = tensor.double()
    if len({tuple(s) for s in sums.values()}) != 1 or not next(iter(sums.values())):
        raise AnswerError("the Fisher's groups name different parameters, or none")
    out = FisherSums(kind, scope, num_classes, sums, dict(zip(labels, counts, strict=True)))
    try:
        out.validate()
    except UnlearnError as e:
        raise AnswerError(str(e)) from e
    return out


def from_ledger(content: RecordDict) -> bool:
    """Whether a Fisher answer says that it came from the client's ledger."""
    record = content.config_records.get(HEAD)
    return record is not None and record.get("ledger") is True


# --------------------------------------------------------------------------- scores
def write_scores(client: str, scores: Sequence[Sequence[ClassScores]], seconds: float) -> RecordDict:
    """A client's scores: one list per model, one entry per candidate."""
    labels = sorted({c for row in scores for s in row for c in s.total})
    flat = [s for row in scores for s in row]
    record = head(
        client=client,
        seconds=seconds,
        labels=labels,
        total=[flat[0].total.get(c, 0) for c in labels],
        correct=[s.correct.get(c, 0) for s in flat for c in labels],
        loss=[float(s.loss.get(c, 0.0)) for s in flat for c in labels],
    )
    return RecordDict({HEAD: record})


def read_scores(content: RecordDict, *, models: int, candidates: int) -> list[list[ClassScores]]:
    """A client's scores, checked.

    Raises:
        AnswerError: If counts are negative, exceed their totals, or do not fit what was asked.
    """
    record = read_head(content)
    labels, total, correct = ints(record, "labels"), ints(record, "total"), ints(record, "correct")
    loss = [float(v) for v in list_of(record, "loss") if isinstance(v, int | float)]
    width, rows = len(labels), models * candidates
    sizes = (len(total), len(correct), len(loss))
    if sizes != (width, rows * width, rows * width) or len(set(labels)) != width:
        raise AnswerError(f"the scores have {sizes} values for {rows} x {width} models and classes")
    if any(not 0 <= n <= MAX_COUNT for n in total) or any(not REST <= c < MAX_CLASSES for c in labels):
        raise AnswerError("the scores have labels or totals out of range")
    out = []
    for i in range(rows):
        right = correct[i * width : (i + 1) * width]
        nats = loss[i * width : (i + 1) * width]
        if any(not 0 <= r <= n for r, n in zip(right, total, strict=True)):
            raise AnswerError("the scores count more correct samples than there are, or fewer than none")
        if any(not 0 <= v <= MAX_LOSS for v in nats):
            raise AnswerError("the scores have a loss that is negative or not a finite number to add")
        out.append(
            ClassScores(
                dict(zip(labels, right, strict=True)),
                dict(zip(labels, total, strict=True)),
                dict(zip(labels, nats, strict=True)),
            )
        )
    return [out[m * candidates : (m + 1) * candidates] for m in range(models)]


def read_seconds(content: RecordDict) -> float:
    """Seconds of computing that a client reports; 0 when it reports nonsense."""
    record = content.config_records.get(HEAD)
    value = record.get("seconds") if record else None
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0


def read_model(content: RecordDict, name: str = MODEL) -> ArrayRecord:
    """The model that a message carries.

    Raises:
        ModelMismatchError: If it carries none.
    """
    arrays = content.array_records.get(name)
    if not arrays:
        raise ModelMismatchError(f"the message carries no model {name!r}")
    return arrays


def list_of(record: ConfigRecord, key: str) -> list[Any]:
    """The list under ``key``.

    Raises:
        AnswerError: If there is none.
    """
    value = record.get(key)
    if not isinstance(value, list):
        raise AnswerError(f"the message's {key!r} is {type(value).__name__}, a list is needed")
    return value


def ints(record: ConfigRecord, key: str) -> list[int]:
    """The list of whole numbers under ``key``.

    Raises:
        AnswerError: If there is none.
    """
    values = list_of(record, key)
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise AnswerError(f"the message's {key!r} must be whole numbers, got {values[:5]}")
    return values
