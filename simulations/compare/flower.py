"""A federation behind Flower: the same strategies and tasks as in one process, over messages."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fl_unlearn.flower import records
from fl_unlearn.flower.exchange import match
from fl_unlearn.flower.naming import partition_name
from fl_unlearn.types import AnswerError, ForgetRequest, UnlearnError
from simulations.compare import messages
from strategies import tasks
from strategies.client import PARTS, Client
from strategies.contract import Cost
from strategies.errors import StrategyError
from strategies.tasks import Answer, Settings, Tensors, task

log = logging.getLogger("fl_unlearn.simulations")

INDEX = "index"
PATIENCE = 60.0
"""Seconds to wait for all clients to connect."""


@task("identify")
def identify(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """A client's index, its number of samples in each part, and, as the note ``request``, what to forget."""
    counts: dict[str, float] = {INDEX: client.index, **{part: client.count(part) for part in PARTS}}
    request = "" if client.request is None else _text(client.request)
    return Answer(client.count("train"), numbers=counts, notes={"request": request})


class FlowerFederation:
    """The clients that are connected to a Grid; see `strategies.contract.Federation`.

    They are asked once who they are; that is in no cost.

    Args:
        grid: Flower's Grid.
        request: What is to be forgotten; they know it too.
        timeout: Seconds to wait for the answers to one question.

    Raises:
        StrategyError: If there is no client, one cannot say who it is, or one is to forget something else.
    """

    def __init__(self, grid: Grid, request: ForgetRequest, *, timeout: float = 600.0) -> None:
        self._grid, self._timeout = grid, timeout
        self._request, self._cost = request, Cost()
        self._nodes, self._counts = self._meet()

    @property
    def request(self) -> ForgetRequest:
        """What is to be forgotten."""
        return self._request

    @property
    def clients(self) -> Mapping[str, Mapping[str, int]]:
        """Client name to its number of samples in each part."""
        return self._counts

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return self._cost

    def ask(
        self,
        task: str,
        tensors: Tensors | None = None,
        settings: Settings | None = None,
        clients: Sequence[str] | None = None,
    ) -> dict[str, Answer]:
        """Have clients run one task, all at the same time; see `strategies.contract.Federation`."""
        names = list(self._nodes) if clients is None else list(clients)
        if unknown := [n for n in names if n not in self._nodes]:
            raise StrategyError(f"there is no client {unknown[0]!r}: they are {', '.join(self._nodes)}")
        sent = tensors or {}
        content = messages.write_task(task, sent, settings or {})
        labels = {self._nodes[name]: f"client {name}" for name in names}
        answers = dict(self._exchange(task, content, labels).values())
        if list(answers) != names:
            raise StrategyError(f"asked the clients {', '.join(names)}, they answer as {', '.join(answers)}")
        self._cost.add(sent, answers)
        return answers

    def _meet(self) -> tuple[dict[str, int], dict[str, Mapping[str, int]]]:
        """Node id and counts of every client, by name, in the order of their indices."""
        labels = {node: f"node {node}" for node in self._grid.get_node_ids()}
        if not labels:
            raise StrategyError("no client is connected, so there is nobody to ask")
        nodes: dict[str, int] = {}
        places: dict[str, float] = {}
        counts: dict[str, Mapping[str, int]] = {}
        content = messages.write_task("identify", {}, {})
        for node, (client, answer) in self._exchange("identify", content, labels).items():
            if client in nodes:
                raise StrategyError(f"two nodes answer as client {client!r}; client names must be unique")
            if (theirs := answer.notes.get("request")) != (ours := _text(self._request)):
                raise StrategyError(f"client {client} is to forget {theirs or 'nothing'}, the server {ours}")
            nodes[client], places[client] = node, answer.numbers[INDEX]
            counts[client] = {part: int(answer.numbers[part]) for part in PARTS}
        order = sorted(nodes, key=places.__getitem__)
        return {name: nodes[name] for name in order}, {name: counts[name] for name in order}

    def _exchange(
        self, task: str, content: RecordDict, labels: Mapping[int, str]
    ) -> dict[int, tuple[str, Answer]]:
        """Ask nodes, and wait for all: by node, in the order given, the name that it gives and its answer."""
        sent = [Message(content, node, f"query.{messages.ACTION}") for node in labels]
        log.debug("asking %d clients: %s", len(sent), task)
        answers = match(sent, self._grid.send_and_receive(sent, timeout=self._timeout) if sent else ())
        out, problems = {}, []
        for node, label in labels.items():
            try:
                if node in answers.failed:
                    raise AnswerError(answers.failed[node])
                if node not in answers.ok:
                    raise AnswerError(f"no answer within {self._timeout:g} s")
                out[node] = messages.read_answer(answers.ok[node])
            except AnswerError as e:
                problems.append(f"{label} failed at {task!r}: {e}")
        if problems:
            raise StrategyError("; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else ""))
        return out


def await_clients(grid: Grid, number: int) -> None:
    """Wait until as many nodes are connected as there are to be clients.

    Raises:
        StrategyError: If they are not within `PATIENCE` seconds.
    """
    deadline, told = time.monotonic() + PATIENCE, -1
    while (nodes := len(list(grid.get_node_ids()))) < number:
        how = f"give flwr run --federation-config 'num-supernodes={number}'"
        if time.monotonic() > deadline:
            raise StrategyError(f"{nodes} of {number} clients are connected after {PATIENCE:g} s; {how}")
        if nodes != told:
            log.info("%d of %d clients are connected; if there are not more to come, %s", nodes, number, how)
            told = nodes
        time.sleep(0.2)


def show_progress() -> None:
    """Print what fl-unlearn logs. Its own logger: a handler at the root would print Flower's lines twice."""
    logger = logging.getLogger("fl_unlearn")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.setLevel(logging.INFO)


def respond(message: Message, context: Context, client: Callable[[Context], Client]) -> Message:
    """A client's side: run the task that a message asks for; what cannot be done is answered in words.

    Args:
        message: From `FlowerFederation`.
        context: Of the ClientApp.
        client: Gives the client; if it cannot, the answer is in the name of the partition id.
    """
    name = partition_name(context)
    try:
        own = client(context)
        name = own.name
        task, tensors, settings = messages.read_task(message.content)
        answer = tasks.run(task, own, tensors, settings)
        return Message(messages.write_answer(name, answer), reply_to=message)
    except (UnlearnError, ValueError, OSError) as e:
        return records.failure(message, name, f"{type(e).__name__}: {e}")


def _text(request: ForgetRequest) -> str:
    return json.dumps(request.to_json(), sort_keys=True)
