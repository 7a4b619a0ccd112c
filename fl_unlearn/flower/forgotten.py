"""Telling clients what to leave out of their training from now on, and reading it there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.targets import Share
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, ForgetRequest

_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)
_MOST_UPDATES = 10_000

Request = dict[str, Any]
"""Classes to leave out, and the clients that are to do so; none: all of them."""

SAMPLES = records.FORGOTTEN + ".samples"
"""Name of the entry that tells one client which of its samples were forgotten."""


def requests_of(store: RunStore) -> list[Request]:
    """What was decided of classes so far."""
    requests = (o.request for o in store.operations.all())
    return [{"classes": r["classes"], "clients": r["clients"]} for r in requests if r["classes"]]


def samples_of(store: RunStore) -> dict[str, list[str]]:
    """What was decided of clients and samples so far: client to the texts of what it is to leave out."""
    out: dict[str, list[str]] = {}
    for operation in store.operations.all():
        request = ForgetRequest.from_json(operation.request)
        for client in request.named if request.kind != "classes" else ():
            out.setdefault(client, []).append(Share.of(request, client).to_text())
    return out


def updates_of(store: RunStore) -> list[str]:
    """Digests of the updates that the model of every later round has had."""
    return [o.client_update for o in store.operations.all()]


def tell_forgotten(store: RunStore, messages: Iterable[Message], owner: Callable[[int], str]) -> None:
    """Tell clients in the messages that they get what to leave out from now on.

    Classes are told to all, samples to the client only whose they are. It goes into the message's own
    ConfigRecord, where there is one: Flower's client-side clipping refuses a message with two.

    Args:
        store: The run's store.
        messages: Messages to clients; each gets a content of its own, for strategies give one to many.
        owner: Gives the name of the client behind a node.
    """
    requests, samples = [json.dumps(r) for r in requests_of(store)], samples_of(store)
    updates = updates_of(store)
    for message in messages if updates else ():
        told: dict[str, Any] = {records.FORGOTTEN: requests, records.UPDATES: updates}
        if own := samples.get(owner(message.metadata.dst_node_id)):
            told[SAMPLES] = own
        configs = list(message.content.config_records)
        name = configs[0] if len(configs) == 1 else records.FORGOTTEN
        kept = message.content.config_records.get(name) or ConfigRecord()
        message.content = RecordDict({**message.content, name: ConfigRecord({**kept, **told})})


def read(content: RecordDict) -> list[Request]:
    """What `tell_forgotten` wrote into a message of classes; nothing if it wrote nothing."""
    for record in content.config_records.values():
        if records.FORGOTTEN in record:
            return [json.loads(str(r)) for r in records.list_of(record, records.FORGOTTEN)]
    return []


def read_updates(content: RecordDict) -> list[str]:
    """Digests of the updates that a training message's model has had.

    Raises:
        AnswerError: If they are no digests.
    """
    for record in content.config_records.values():
        if records.UPDATES in record:
            return _digests(record[records.UPDATES])
    return []


def _digests(said: Any) -> list[str]:
    try:
        found = json.loads(said) if isinstance(said, str) else said  # legacy messages carry scalars only
        if len(found) > _MOST_UPDATES or not all(_DIGEST.fullmatch(d) for d in found):
            raise ValueError
    except (ValueError, TypeError, RecursionError) as e:
        raise AnswerError(f"the message's list of updates is malformed: {str(said)[:100]}") from e
    return list(found)


def classes_for(requests: Iterable[Request], client: str) -> tuple[int, ...]:
    """The classes that one client is to leave out, in ascending order."""
    named = (r for r in requests if not r["clients"] or client in r["clients"])
    return tuple(sorted({int(c) for r in named for c in r["classes"]}))


def united(texts: Iterable[object]) -> Share:
    """What any of these texts names.

    Raises:
        AnswerError: If one makes no sense.
    """
    out = Share()
    for text in texts:
        out |= Share.from_text(text)
    return out


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
    found = (r for r in message.content.config_records.values() if SAMPLES in r)
    return united(text for record in found for text in records.list_of(record, SAMPLES))
