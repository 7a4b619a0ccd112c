"""Telling clients to apply a decided update, now or at their next contact."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import records
from fl_unlearn.flower.exchange import Answers, Exchange, unidentified
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, UnlearnError

log = logging.getLogger(__name__)

_MOST_RECEIPTS = 100  # of one client: they go into the audit log and every certificate


def broadcast(
    exchange: Exchange,
    store: RunStore,
    operation: str,
    update: DampeningUpdate,
    nodes: Mapping[int, str],
    request: int | None = None,
) -> None:
    """Send one update to many clients and settle those that confirm it.

    What they say they applied it to is kept with the request. One that could not apply it to some copy of its
    own stays outstanding.

    Args:
        exchange: The way to the clients.
        store: Whose ledger is settled.
        operation: The operation's digest.
        update: What to apply.
        nodes: Node id to client name.
        request: Id of the request that was decided.
    """
    told = records.head(operation=operation, store=store.audit.store_id)
    content = RecordDict({records.HEAD: told, **records.write_update(update)})
    for node, reply in exchange.each(records.APPLY, dict.fromkeys(nodes, content)):
        if isinstance(reply, str):
            continue
        try:
            client = records.read_client(reply)
            record = records.read_head(reply)
            stranger = nodes[node] == unidentified(node)
            if (client != nodes[node] and not stranger) or record.get("digest") != update.digest:
                raise AnswerError(f"node {node} confirmed {record.get('digest')!r} as client {client!r}")
            if stranger:
                store.identify(nodes[node], client)
        except AnswerError as e:
            log.warning("client %s has not applied the update: %s", nodes[node], e)
            continue
        texts = record.get("receipts", [])
        texts = texts[:_MOST_RECEIPTS] if isinstance(texts, list) else []
        receipts = [f"{client}: {str(t)[:500]}" for t in texts]
        unsettled = record.get("unsettled")
        with store.audit.transaction():
            if unsettled is None:
                store.operations.settle(operation, client, receipts)
            elif not store.operations.note_attempt(operation, client, str(unsettled)[:500], receipts):
                continue  # as it said before
            if request is not None:
                store.runs.requests.add_receipts(request, receipts)


def deliver_outstanding(
    exchange: Exchange,
    store: RunStore,
    nodes: Iterable[int],
    names: Mapping[int, str] | Mapping[int, str | None] | None = None,
) -> None:
    """Send clients that are back the updates that they missed; what cannot be delivered stays outstanding.

    Args:
        exchange: The way to the clients.
        store: Whose ledger is settled.
        nodes: Nodes that can be reached.
        names: Their clients' names, where known; None: ask them, if anything is outstanding.
    """
    waiting = store.operations.outstanding()
    if not waiting:
        return
    named = identify(exchange, list(nodes)) if names is None else names
    operations = {o.digest: o for missed in waiting.values() for o in missed}
    for operation in store.operations.all():
        if operation.digest not in operations:
            continue
        back = {
            node: name
            for node in nodes
            if (name := named.get(node)) is not None and operation in waiting.get(name, [])
        }
        if not back:
            continue
        log.info("%d clients are back and get update %s", len(back), operation.client_update[:12])
        try:
            update = store.update(operation.client_update)
            broadcast(exchange, store, operation.digest, update, back, operation.request.get("request"))
        except UnlearnError:
            log.exception(
                "update %s could not be delivered and stays outstanding", operation.client_update[:12]
            )


def identify(exchange: Exchange, nodes: list[int]) -> dict[int, str | None]:
    """Ask nodes which clients they are.

    Returns:
        Node id to client name, None for a node that answers but has no name to give (it lacks the plug-in,
        say); nodes that did not answer are left out.
    """
    content = RecordDict({records.HEAD: ConfigRecord({"protocol": records.PROTOCOL})})
    answers = exchange.ask(records.IDENTITY, dict.fromkeys(nodes, content))
    names: dict[int, str | None] = {**names_of(answers)}
    return names | dict.fromkeys(answers.failed, None)


def names_of(answers: Answers) -> dict[int, str]:
    """Node id to client name for answers that give one; a name given by two nodes counts for the first."""
    names: dict[int, str] = {}
    taken = set[str]()
    for node, content in sorted(answers.ok.items()):
        try:
            name = records.read_client(content)
        except AnswerError as e:
            answers.failed[node] = str(e)
            continue
        if name in taken:
            answers.failed[node] = f"another node answers as client {name!r} too"
            continue
        names[node] = name
        taken.add(name)
    return names
