"""A tiny federation whose messages are recorded once, and then answered again from the record."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private; a Message cannot be made without it
from torch import nn

from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.flower.client import Responder
from fl_unlearn.flower.exchange import Exchange
from fl_unlearn.flower.panel import Panel
from fl_unlearn.types import ForgetRequest, UnlearnSettings, signature_of

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

NODES = (1, 2, 3)
CLASSES, FEATURES = 3, 4
EXAMPLES = 12
"""Of each client."""

REQUEST = ForgetRequest(classes=(1,))
SETTINGS = UnlearnSettings(
    erase="auto",
    measures=("probe", "backdoor", "distance"),
    candidates=(1.0, 3.0),
    dampenings=(1.0,),
    timeout=0.5,
)


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, 3)."""
        out: torch.Tensor = self.head(torch.relu(self.hidden(x)))
        return out


def model() -> Net:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return Net()


def data(context: Context) -> Any:
    """A client's batches, for training and held out: all three classes, apart from one another."""
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    y = torch.arange(EXAMPLES) % CLASSES
    x = torch.nn.functional.one_hot(y, FEATURES) * 3.0 + torch.randn(EXAMPLES, FEATURES, generator=generator)
    return [(x, y)], [(x.flip(0), y.flip(0))]


def context_of(node: int) -> Context:
    """A node's Context, new."""
    own = {"partition-id": node - 1, "num-partitions": len(NODES)}
    return Context(1, node, own, RecordDict(), {})  # type: ignore[arg-type]


Answer = Callable[[str, int, RecordDict], RecordDict]
"""Gives a node's answer to a question: its action, the node, the content."""


class AnsweredGrid(Grid):
    """A Grid whose nodes are a function."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer at once."""
        ids = []
        for m in messages:
            m.metadata.__dict__["_message_id"] = key = uuid.uuid4().hex
            action = m.metadata.message_type.partition(".")[2]
            self._replies[key] = Message(self.answer(action, m.metadata.dst_node_id, m.content), reply_to=m)
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers, once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All answers."""
        return self.pull_messages(self.push_messages(messages))

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return NODES

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


def panel(answer: Answer) -> Panel:
    """A panel over such a Grid, of a federation in which every client trained on as many examples."""
    out = Panel(
        Exchange(AnsweredGrid(answer), SETTINGS.timeout),
        REQUEST,
        SETTINGS,
        {str(n - 1): EXAMPLES for n in NODES},
    )
    out.wait_for_clients()
    return out


class Genuine:
    """Clients that answer as the library does; what they were asked and said is kept.

    Attributes:
        questions: Action to the first question.
        answers: (action, node) to the first answer.
    """

    def __init__(self) -> None:
        self.responder = Responder(model, data, device="cpu")
        self.questions: dict[str, RecordDict] = {}
        self.answers: dict[tuple[str, int], RecordDict] = {}

    def __call__(self, action: str, node: int, content: RecordDict) -> RecordDict:
        """A node's answer."""
        if (action, node) not in self.answers:
            question = Message(copy.deepcopy(content), node, f"query.{action}")
            self.questions.setdefault(action, content)
            self.answers[action, node] = self.responder.handle(question, context_of(node)).content
        return self.answers[action, node]


def an_update(state: dict[str, torch.Tensor]) -> DampeningUpdate:
    """An update of some elements of two tensors."""
    generator = torch.Generator().manual_seed(1)
    forget = {
        n: torch.rand(state[n].shape, generator=generator).double() for n in ("head.weight", "hidden.bias")
    }
    kept = {n: torch.rand(t.shape, generator=generator).double() * 0.8 for n, t in forget.items()}
    return build_update(
        forget, kept, threshold=1.0, dampening=1.0, signature=signature_of(state), erasures={}
    )
