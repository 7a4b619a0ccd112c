"""Telling clients what to leave out of their training from now on, and reading it there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError

_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)
_MOST_UPDATES = 10_000

Request = dict[str, Any]
"""Classes to leave out, and the clients that are to do so; none: all of them."""


def requests_of(store: RunStore) -> list[Request]:
    """What was decided so far."""
    return [
        {"classes": o.request["classes"], "clients": o.request["clients"]} for o in store.operations.all()
    ]


def updates_of(store: RunStore) -> list[str]:
    """Digests of the updates that the model of every later round has had."""
    return [o.client_update for o in store.operations.all()]


def tell_forgotten(store: RunStore, messages: Iterable[Message]) -> None:
    """Tell clients in the messages that they get what to leave out from now on.

    It goes into the message's own ConfigRecord, where there is one: Flower's client-side clipping refuses a
    message with two.
    """
    requests = [json.dumps(r) for r in requests_of(store)]
    for message in messages if requests else ():
        configs = list(message.content.config_records)
        name = configs[0] if len(configs) == 1 else records.FORGOTTEN
        own = message.content.config_records.get(name, ConfigRecord())
        said = {records.FORGOTTEN: requests, records.UPDATES: updates_of(store)}
        message.content[name] = ConfigRecord({**own, **said})


def read(content: RecordDict) -> list[Request]:
    """What `tell_forgotten` wrote into a message; nothing if it wrote nothing."""
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
