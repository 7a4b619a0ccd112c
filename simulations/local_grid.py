"""A Flower Grid that calls ClientApps directly: a federation in one process, without Ray, in milliseconds."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private; a Message cannot be made without it

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

Tamper = Callable[[Message, Message], Message | None]


class LocalGrid(Grid):
    """``apps[node]`` answers messages to ``node``; partition ids follow the order of ``apps``.

    ``tamper(request, reply)`` may change a reply, or drop it by returning None. Nodes in ``away`` are not
    connected.
    """

    def __init__(self, apps: dict[int, ClientApp], tamper: Tamper | None = None, **run_config: Any) -> None:
        self.apps, self.tamper, self.away = apps, tamper, set[int]()
        self.log: list[tuple[str, int]] = []
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": i, "num-partitions": len(apps)},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i, node in enumerate(apps)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run only."""

    @property
    def run(self) -> Any:
        """What Flower's legacy loop asks the Grid for: the number of its run."""
        return SimpleNamespace(run_id=1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Deprecated in Flower, and not to be used here either."""
        raise RuntimeError("build a Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected."""
        return [n for n in self.apps if n not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered at once."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            ids.append(message.metadata.message_id)
            node = message.metadata.dst_node_id
            self.log.append((message.metadata.message_type, node))
            if node in self.away:
                continue
            try:
                reply: Message | None = self.apps[node](copy.deepcopy(message), self.contexts[node])
            except Exception as e:
                reply = Message(Error(code=2, reason=repr(e)), reply_to=message)
            if self.tamper and reply is not None:
                reply = self.tamper(message, reply)
            if reply is not None:
                if reply.has_error():  # as the real engine does
                    reply.metadata.__dict__["_src_node_id"] = 1
                self._replies[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, and pull."""
        return self.pull_messages(self.push_messages(messages))
