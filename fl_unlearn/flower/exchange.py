"""One question to many clients: send, wait, match the answers, count bytes and seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_unlearn.evidence import UNIDENTIFIED
from fl_unlearn.flower import records

log = logging.getLogger(__name__)

IN_FLIGHT = 64
"""How many clients are asked at a time: the SuperLink holds a copy of every question that is out."""

_PATIENCE = 10.0  # seconds without an answer before more are asked
_SHORTEST, _LONGEST = 0.05, 2.0  # seconds between looks at what has come


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
        answers, silent = Answers(), set(contents)
        for node, reply in self.each(action, contents):
            silent.discard(node)
            if isinstance(reply, str):
                answers.failed[node] = reply
            else:
                answers.ok[node] = reply
        answers.silent = sorted(silent)
        return answers

    def each(self, action: str, contents: Mapping[int, RecordDict]) -> Iterator[tuple[int, RecordDict | str]]:
        """As `ask`, but gives each answer as it arrives, so that not all need be held at once.

        At most `IN_FLIGHT` questions are out at a time, unless those who have them do not answer.

        Yields:
            Node id and what it answers, or the reason of its failure. Nodes that never come were silent.
        """
        log.info("asking %d clients: %s", len(contents), action)
        waiting = [Message(content, node, f"query.{action}") for node, content in contents.items()]
        sizes = {id(c): records.size_of(c) for c in {id(c): c for c in contents.values()}.values()}
        self.bytes_down += sum(sizes[id(c)] for c in contents.values())
        silent = set(contents)
        for node, reply in self._flow(waiting):
            silent.discard(node)
            if isinstance(reply, str):
                # Of those that have no name to give, whoever asked for names speaks.
                level = logging.INFO if action == records.IDENTITY else logging.WARNING
                log.log(level, "client node %d failed at %s: %s", node, action, reply)
            else:
                self.bytes_up += records.size_of(reply)
                self.client_seconds += records.read_seconds(reply)
            yield node, reply
        if silent:
            log.warning("%d clients did not answer %s: %s", len(silent), action, sorted(silent)[:10])

    def _flow(self, waiting: list[Message]) -> Iterator[tuple[int, RecordDict | str]]:
        """Push messages, as many at a time as may be out, and pull what comes back until the timeout."""
        out: dict[str, Message] = {}
        waiting.reverse()
        deadline, moved, pause = time.monotonic() + self.timeout, time.monotonic(), _SHORTEST
        while waiting or out:
            stalled = time.monotonic() > moved + min(_PATIENCE, self.timeout / 8)
            if waiting and (len(out) < IN_FLIGHT or stalled):
                room = IN_FLIGHT if stalled else IN_FLIGHT - len(out)
                batch = [waiting.pop() for _ in range(min(room, len(waiting)))]
                self.grid.push_messages(batch)
                out |= {m.metadata.message_id: m for m in batch}
                moved = time.monotonic()
            replies = list(self.grid.pull_messages(list(out)))
            answers = match([*out.values()], replies)
            for reply in replies:
                out.pop(reply.metadata.reply_to_message_id, None)
            yield from answers.ok.items()
            yield from answers.failed.items()
            if replies:
                moved, pause = time.monotonic(), _SHORTEST
            elif time.monotonic() > deadline:
                return
            elif out:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)
