"""Asking clients for a sum: their summands are added as they arrive, or cannot be seen at all (masks)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fl_unlearn.flower import records
from fl_unlearn.flower.own_privacy import MASK, SUM
from fl_unlearn.flower.panel import Panel
from fl_unlearn.masking import FEWEST, KEY_BYTES, Masked, decode
from fl_unlearn.running import RunningSum
from fl_unlearn.types import AnswerError, NotEnoughAnswersError

log = logging.getLogger(__name__)

_ATTEMPTS = 3

Said = dict[str, str]


@dataclass
class Summed:
    """A sum over clients.

    Attributes:
        total: The sum, float64.
        clients: Whose summands are in it.
        said: What they all say of it.
    """

    total: NDArray[np.float64]
    clients: list[str] = field(default_factory=list)
    said: Said = field(default_factory=dict)


def ask_sum(
    panel: Panel, phase: str, action: str, content: RecordDict, read: Callable[[RecordDict], tuple[int, Said]]
) -> Summed:
    """The sum of the clients' answers.

    Args:
        panel: The clients, with the settings that say whether masks are used.
        phase: The name of the phase.
        action: One of `records.ACTIONS`.
        content: The question.
        read: Checks an answer; gives how many values it must have, and what must be the same of all.

    Raises:
        RequestError: If no answer is usable, and the clients say that the request is wrong.
        NotEnoughAnswersError: If too few answers are usable, or the masks of some never cancelled.
    """
    if panel.settings.privacy.masked:
        return _masked(panel, phase, action, content, read)
    sums, summed = RunningSum(), Summed(np.zeros(0))

    def take(client: str, reply: RecordDict) -> None:
        values = _values(reply, read, summed, np.float64)
        if not np.all(np.isfinite(values)):
            raise AnswerError("the sum has values that are not finite numbers")
        sums.add({"": torch.from_numpy(values)})
        summed.clients.append(client)

    panel.gather(phase, action, content, take)
    summed.total = sums.total()[""].numpy()
    return summed


def _masked(
    panel: Panel, phase: str, action: str, content: RecordDict, read: Callable[[RecordDict], tuple[int, Said]]
) -> Summed:
    everyone = list(panel.nodes)
    for attempt in range(_ATTEMPTS):
        nodes, publics = _exchange_keys(panel, phase, everyone)
        asked = RecordDict({**content, MASK: ConfigRecord({**publics})})
        summed, totals = Summed(np.zeros(0)), list[Masked]()

        def take(
            client: str, reply: RecordDict, summed: Summed = summed, totals: list[Masked] = totals
        ) -> None:
            values = _values(reply, read, summed, np.int64).view(np.uint64)
            totals[:] = [totals[0] + values if totals else values]
            summed.clients.append(client)

        failed, silent = panel.collect(action, asked, take, nodes)
        panel.note(failed, silent)
        if not failed and not silent:
            summed.total = decode(totals[0])
            return summed
        panel.enough(phase, len(summed.clients))
        everyone = [n for n in nodes if n not in failed and n not in silent]
        log.warning(
            "%d clients dropped out of a masked sum, so its masks do not cancel: asking the others anew "
            "(attempt %d of %d)",
            len(failed) + len(silent),
            attempt + 1,
            _ATTEMPTS,
        )
    raise NotEnoughAnswersError(
        f"clients dropped out of the masked {phase} phase {_ATTEMPTS} times; nothing was changed. Repeat the "
        "request when the clients are back, raise the timeout, or serve it without masks"
    )


def _exchange_keys(panel: Panel, phase: str, everyone: list[int]) -> tuple[list[int], dict[str, bytes]]:
    publics: dict[str, bytes] = {}

    def take(client: str, reply: RecordDict) -> None:
        key = records.read_head(reply).get("key")
        if not isinstance(key, bytes) or len(key) != KEY_BYTES or key in publics.values():
            raise AnswerError(f"a mask key of {KEY_BYTES} bytes of its own is needed")
        publics[client] = key

    content = RecordDict({records.HEAD: records.head()})
    failed, silent = panel.collect(records.KEYS, content, take, everyone)
    panel.note(failed, silent)
    panel.enough(phase, len(publics))
    if len(publics) < FEWEST:
        raise NotEnoughAnswersError(
            f"{len(publics)} clients take part in a masked sum, {FEWEST} are needed: with fewer, a sum tells "
            "what its parts are; nothing was changed"
        )
    return [n for n in everyone if n not in failed and n not in silent], publics


def _values(
    reply: RecordDict,
    read: Callable[[RecordDict], tuple[int, Said]],
    summed: Summed,
    dtype: type[np.generic],
) -> NDArray[np.generic]:
    size, said = read(reply)
    arrays = reply.array_records.get(SUM)
    array = arrays.get("values") if arrays is not None else None
    if array is None or tuple(array.shape) != (size,) or array.dtype != np.dtype(dtype).name:
        found = "none" if array is None else f"{list(array.shape)} of {array.dtype}"
        raise AnswerError(f"a sum of {size} {np.dtype(dtype).name} is needed, got {found}")
    values = records.tensor_of("values", array).numpy().astype(dtype, copy=False)
    if summed.said and said != summed.said:
        raise AnswerError("a sum over other parameters or classes than another client's")
    summed.said.update(said)
    return values
