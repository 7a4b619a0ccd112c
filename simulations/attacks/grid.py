"""A Flower Grid in one process, whose replies may be tampered with."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private; a Message cannot be made without it

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

Tamper = Callable[[int, Message, Message], None]
"""Changes the reply of a node (its number from 0 up) to a message."""


class InProcessGrid(Grid):
    """Node 100 + i is the app with number i, whose partition id is i.

    Args:
        apps: The clients.
        tamper: Called with each reply.
    """

    def __init__(self, apps: list[ClientApp], tamper: Tamper | None = None) -> None:
        self.apps, self.tamper = {100 + i: app for i, app in enumerate(apps)}, tamper
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 100, "num-partitions": len(apps)},
                state=RecordDict(),
                run_config={},
            )
            for node in self.apps
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Not needed here."""

    @property
    def run(self) -> Any:
        """There is none."""
        raise RuntimeError("a federation in one process has no run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not needed here."""
        raise RuntimeError("build a Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run each message's client at once."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            node = message.metadata.dst_node_id
            reply = self.apps[node](copy.deepcopy(message), self._contexts[node])
            if self.tamper is not None:
                self.tamper(node - 100, message, reply)
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Each reply once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Both of the above."""
        return self.pull_messages(self.push_messages(messages))
