"""What a client does to its answers before they leave it: noise, pooled groups, masks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fl_unlearn.flower import records
from fl_unlearn.flower.local import Local
from fl_unlearn.masking import MaskKey
from fl_unlearn.privacy import Privacy
from fl_unlearn.types import REST, AnswerError, ClassScores, RequestError, SettingsError

MASK, SUM = "unlearn.mask", "unlearn.sum"
_KEPT = "unlearn.mask-key"


def to_text(privacy: Privacy) -> str:
    """What a question says about privacy."""
    return json.dumps(asdict(privacy), sort_keys=True)


def agreed(local: Local, record: ConfigRecord) -> Privacy:
    """What a question asks for, if it is enough for this client.

    Raises:
        RequestError: If it is less than the client insists on.
        AnswerError: If it cannot be read.
    """
    try:
        asked = Privacy(**json.loads(str(record.get("privacy", "{}"))))
    except (ValueError, TypeError, SettingsError) as e:
        raise AnswerError(f"the question's privacy cannot be read: {e}") from e
    if why := asked.weaker(local.privacy):
        raise RequestError(f"client {local.client} insists on more privacy; the question asks for {why}")
    return asked


def uncovered(local: Local, what: str) -> None:
    """Refuse a question whose answers have neither noise nor masks, at a client that insists on them.

    Raises:
        RequestError: If this client does.
    """
    if local.privacy.sums_only or local.privacy.score_noise:
        raise RequestError(f"client {local.client} insists on noise or masks, and {what} have neither")


def noisy(values: NDArray[np.float64], deviations: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Values with Gaussian noise, drawn anew from the system's source of randomness at each call."""
    generator = np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))
    return values + deviations * generator.standard_normal(values.shape)


def pool(
    rows: Sequence[Sequence[ClassScores]], forget: Sequence[int], first: int, ignored: Sequence[int]
) -> list[list[ClassScores]]:
    """Scores of two groups.

    Args:
        rows: A row for each model, in it the model as it is and the candidates: scores by class.
        forget: The classes that are to be forgotten of this client.
        first: The label under which they are put; the rest is put under `REST`.
        ignored: The classes that count as neither.
    """

    def pooled(scores: ClassScores) -> ClassScores:
        out = ClassScores({first: 0, REST: 0}, {first: 0, REST: 0}, {first: 0.0, REST: 0.0})
        for label, total in scores.total.items():
            if label in ignored:
                continue
            to = first if label in forget else REST
            out = out + ClassScores({to: scores.correct[label]}, {to: total}, {to: scores.loss[label]})
        return out

    return [[pooled(s) for s in row] for row in rows]


def counts_of(rows: Sequence[Sequence[ClassScores]], forget: int) -> NDArray[np.float64]:
    """Pooled scores as one vector: both groups' totals, then what each candidate gets right of each."""
    first = rows[0][0]
    values = [first.total.get(forget, 0), first.total.get(REST, 0)]
    for row in rows:
        for s in row:
            values += [s.correct.get(forget, 0), s.correct.get(REST, 0)]
    return np.array(values, dtype=np.float64)


# --------------------------------------------------------------------------- one summand
def keys(local: Local, record: ConfigRecord, content: RecordDict) -> RecordDict:
    """A new key for the masks of the next sum; only its public half leaves."""
    key = MaskKey()
    local.state[_KEPT] = ConfigRecord({"key": key.private})
    return RecordDict({records.HEAD: records.head(client=local.client, key=key.public)})


def write_sum(
    local: Local, content: RecordDict, values: NDArray[np.float64], privacy: Privacy, **said: Any
) -> RecordDict:
    """One client's summand, under masks if they are asked for.

    Raises:
        RequestError: If there is no key for the masks, or too few clients.
    """
    sent: NDArray[np.float64] | NDArray[np.int64] = values
    if privacy.masked:
        kept = local.state.config_records.pop(_KEPT, None)
        peers = content.config_records.get(MASK)
        if kept is None or peers is None:
            raise RequestError("a masked sum was asked for without keys; ask for the keys before each sum")
        publics = {str(c): k for c, k in peers.items() if isinstance(k, bytes)}
        sent = MaskKey(_bytes(kept["key"])).mask(local.client, publics, values).view(np.int64)
    head = records.head(client=local.client, **said)
    return RecordDict({records.HEAD: head, SUM: ArrayRecord({"values": Array(sent)})})


def _bytes(value: Any) -> bytes:
    assert isinstance(value, bytes)
    return value
