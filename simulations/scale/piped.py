"""A Grid without Flower's engine: the clients live in two processes of their own, and answer through pipes.

What the server's process then needs is the library's own: no SuperLink and no Ray driver are in it.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private; a Message cannot be made without it

from simulations.scale.app.fl_unlearn_scale.client_app import app
from simulations.scale.app.fl_unlearn_scale.serve import serve

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class PipedGrid(Grid):
    """Clients 0 to ``clients - 1``, with node ids from 1 up, in ``workers`` processes.

    Args:
        clients: How many.
        config: The app's run config.
        workers: How many processes.
    """

    def __init__(self, clients: int, config: Mapping[str, Any], workers: int = 2) -> None:
        self.clients, self.config = clients, dict(config)
        self._waiting: list[deque[Message]] = [deque() for _ in range(workers)]
        self._asked: list[Message | None] = [None] * workers

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in self._waiting]
        self._ends = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_answer, args=(theirs, self.clients, self.config), daemon=True)
            for _, theirs in pipes
        ]
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing is copied before a process is free for it."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            ids.append(message.metadata.message_id)
            self._waiting[message.metadata.dst_node_id % len(self._waiting)].append(message)
        self._send()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies of the processes that are done; waits for one if any is at work."""
        busy = [end for end, asked in zip(self._ends, self._asked, strict=True) if asked]
        replies = []
        for end in wait(busy) if busy else []:
            assert isinstance(end, Connection)
            i = self._ends.index(end)
            asked, self._asked[i] = self._asked[i], None
            assert asked is not None
            answer = pickle.loads(end.recv_bytes())
            replies.append(Message(answer, reply_to=asked))
        self._send()
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All replies."""
        left, replies = set(self.push_messages(messages)), list[Message]()
        while left:
            found = list(self.pull_messages(left))
            left -= {m.metadata.reply_to_message_id for m in found}
            replies += found
        return replies

    def get_node_ids(self) -> Iterable[int]:
        """All clients are always there."""
        return range(1, self.clients + 1)

    def set_run(self, run: Any) -> None:
        """There is none."""

    @property
    def run(self) -> Any:
        """There is none."""
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Flower's old way to make one.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("build a flwr.app.Message instead")

    def _send(self) -> None:
        for i, (end, queue) in enumerate(zip(self._ends, self._waiting, strict=True)):
            if self._asked[i] is None and queue:
                message = self._asked[i] = queue.popleft()
                meta = message.metadata
                end.send_bytes(pickle.dumps((meta.dst_node_id, meta.message_type, message.content)))


def _answer(end: Connection, clients: int, config: dict[str, Any]) -> None:
    """A process that answers for clients until it is stopped."""
    torch.set_num_threads(1)
    contexts: dict[int, Context] = {}
    while True:
        node, kind, content = pickle.loads(end.recv_bytes())
        if node not in contexts:
            own = {"partition-id": node - 1, "num-partitions": clients}
            contexts[node] = Context(1, node, own, RecordDict(), config)
        message = Message(content, node, kind)
        try:
            reply = app(message, contexts[node])
            answer: RecordDict | Error = reply.error if reply.has_error() else reply.content
        except Exception as e:
            answer = Error(code=2, reason=repr(e))
        end.send_bytes(pickle.dumps(answer))


def main() -> None:
    """``python -m simulations.scale.piped CONFIG OUT``: one run in a process that did nothing before."""
    config, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with PipedGrid(int(config["clients"]), config) as grid:
        out.write_text(json.dumps(serve(grid, config, out.with_suffix(".store"))))


if __name__ == "__main__":
    main()
