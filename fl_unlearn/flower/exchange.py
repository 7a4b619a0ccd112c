"""One question to many clients: send, wait, match the answers, count bytes and seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_unlearn.evidence import UNIDENTIFIED
from fl_unlearn.flower import records

log = logging.getLogger(__name__)


def unidentified(node: int) -> str:
    """The stand-in name of a node that has not said which client it is."""
    return f"{UNIDENTIFIED}{node}"


def natural(name: str) -> tuple[int, str]:
    """Sort key that puts client 2 before client 10."""
    return (int(name), "") if name.isdigit() else (1 << 62, name)


@dataclass
class Answers:
    """What came back, by node id.

    Attributes:
        ok: Content of the answers that carry one.
        failed: Reason of those that report an error.
        silent: Nodes that did not answer in time.
    """

    ok: dict[int, RecordDict] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    silent: list[int] = field(default_factory=list)


def match(sent: Sequence[Message], replies: Iterable[Message]) -> Answers:
    """Attribute replies to the nodes that were asked.

    Error replies carry the SuperLink's id as their source, so the id of the message they reply to decides;
    replies to nothing that was sent are ignored, and only a node's first answer counts.
    """
    asked = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    answers = Answers()
    for reply in replies:
        node = asked.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            continue
        if reply.has_error():
            answers.failed[node] = reply.error.reason or f"error code {reply.error.code}"
        else:
            answers.ok[node] = reply.content
    answers.silent = sorted(asked.values())
    return answers


@dataclass
class Exchange:
    """Queries over a Grid, with the totals of what crossed the wire.

    Attributes:
        grid: Flower's Grid.
        timeout: Seconds to wait for the answers to one question.
        bytes_down: Bytes sent to clients so far.
        bytes_up: Bytes received from clients so far.
        client_seconds: Seconds of computing that clients reported so far.
    """

    grid: Grid
    timeout: float
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0

    def ask(self, action: str, contents: Mapping[int, RecordDict]) -> Answers:
        """Send each node its question and wait for the answers.

        Args:
            action: One of `records.ACTIONS`.
            contents: Node id to the message's content.
        """
        sent = [Message(content, node, f"query.{action}") for node, content in contents.items()]
        log.info("asking %d clients: %s", len(sent), action)
        answers = match(sent, self.grid.send_and_receive(sent, timeout=self.timeout)) if sent else Answers()
        self.bytes_down += sum(records.size_of(c) for c in contents.values())
        for content in answers.ok.values():
            self.bytes_up += records.size_of(content)
            self.client_seconds += records.read_seconds(content)
        for node, reason in answers.failed.items():
            log.warning("client node %d failed at %s: %s", node, action, reason)
        if answers.silent:
            log.warning("%d clients did not answer %s: %s", len(answers.silent), action, answers.silent[:10])
        return answers
