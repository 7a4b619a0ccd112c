"""Telling clients to apply a decided update, now or at their next contact."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.flower import records
from fl_unlearn.flower.exchange import Answers, Exchange
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError

log = logging.getLogger(__name__)


def broadcast(
    exchange: Exchange, store: RunStore, operation: str, update: DampeningUpdate, nodes: Mapping[int, str]
) -> list[str]:
    """Send one update to many clients and settle those that confirm it.

    Args:
        exchange: The way to the clients.
        store: Whose ledger is settled.
        operation: The operation's digest.
        update: What to apply.
        nodes: Node id to client name.

    Returns:
        Receipts of the copies that clients keep, as JSON texts prefixed by the client's name.
    """
    content = RecordDict({records.HEAD: records.head(operation=operation), **records.write_update(update)})
    answers = exchange.ask(records.APPLY, dict.fromkeys(nodes, content))
    receipts = []
    for node, reply in answers.ok.items():
        try:
            client = records.read_client(reply)
            record = records.read_head(reply)
            if client != nodes[node] or record.get("digest") != update.digest:
                raise AnswerError(f"node {node} confirmed {record.get('digest')!r} as client {client!r}")
        except AnswerError as e:
            log.warning("client %s has not applied the update: %s", nodes[node], e)
            continue
        store.operations.settle(operation, client)
        texts = record.get("receipts", [])
        receipts += [f"{client}: {str(t)[:500]}" for t in (texts if isinstance(texts, list) else [])]
    return receipts


def deliver_outstanding(exchange: Exchange, store: RunStore, nodes: Mapping[int, str]) -> None:
    """Send clients that are back the updates that they missed, before they are asked anything else."""
    for client, operations in store.operations.outstanding().items():
        reachable = {node: name for node, name in nodes.items() if name == client}
        for operation in operations if reachable else []:
            log.info("client %s is back and gets update %s", client, operation.client_update[:12])
            broadcast(exchange, store, operation.digest, store.update(operation.client_update), reachable)


def identify(exchange: Exchange, nodes: list[int]) -> dict[int, str]:
    """Ask nodes which clients they are; nodes without the plug-in, or that do not answer, are left out."""
    content = RecordDict({records.HEAD: ConfigRecord({"protocol": records.PROTOCOL})})
    return names_of(exchange.ask(records.IDENTITY, dict.fromkeys(nodes, content)))


def names_of(answers: Answers) -> dict[int, str]:
    """Node id to client name for answers that give one; a name given by two nodes counts for the first."""
    names: dict[int, str] = {}
    for node, content in sorted(answers.ok.items()):
        try:
            name = records.read_client(content)
        except AnswerError as e:
            answers.failed[node] = str(e)
            continue
        if name in names.values():
            answers.failed[node] = f"another node answers as client {name!r} too"
            continue
        names[node] = name
    return names
