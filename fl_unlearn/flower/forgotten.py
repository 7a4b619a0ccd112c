"""What clients must leave out of their training from now on: told in training messages, read there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.targets import Share
from fl_unlearn.types import ForgetRequest

_SAMPLES = "samples"


def tell(
    messages: Iterable[Message], operations: Iterable[Mapping[str, Any]], names: Mapping[int, str | None]
) -> None:
    """Add to messages what was forgotten: classes to all, clients and samples to whom they are of.

    Args:
        messages: Messages to clients.
        operations: Requests that were decided, as the ledger has them.
        names: Node id to client name; what is not named is told nothing of clients and samples.
    """
    requests = [ForgetRequest.from_json(o) for o in operations]
    if not requests:
        return
    classes = [
        json.dumps({"classes": r.classes, "clients": r.clients}) for r in requests if r.kind == "classes"
    ]
    own: dict[str, list[str]] = {}
    for request in requests:
        for client in request.named if request.kind != "classes" else ():
            own.setdefault(client, []).append(Share.of(request, client).to_text())
    for message in messages:
        told = {records.FORGOTTEN: ConfigRecord({"requests": classes})}
        if samples := own.get(names.get(message.metadata.dst_node_id) or ""):
            told[records.FORGOTTEN][_SAMPLES] = samples
        # Strategies give one content to many messages: what one client is told must not reach the others.
        message.content = RecordDict({**message.content, **told})


def forgotten_samples(message: Message) -> Share:
    """The samples that this client must leave out of its training from now on; empty before any request.

    `forgotten_classes` tells of requests for classes; heed both.

    Args:
        message: A training message of a server with `UnlearningStrategy`.

    Returns:
        ``all``: everything; ``positions`` and ``keys``: these samples; ``kept(count, keys)`` gives the
        positions that are left.

    Raises:
        AnswerError: If the message makes no sense.
    """
    record, out = message.content.config_records.get(records.FORGOTTEN), Share()
    for text in records.list_of(record, _SAMPLES) if record is not None and _SAMPLES in record else ():
        out |= Share.from_text(text)
    return out
