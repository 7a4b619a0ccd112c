"""The contract between a way to forget, the clients it asks, and what training left behind.

A `Strategy` gets a `Federation` (clients that run tasks) and a `History` (the stored run), and gives an
`Outcome`. It does not know whether its clients are in the same process or behind Flower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch

from fl_unlearn.types import ForgetRequest, StateDict
from strategies.errors import UnsupportedError
from strategies.history import History
from strategies.tasks import Answer, Settings, Tensors

State = dict[str, torch.Tensor]

Target = Literal["classes", "client", "samples"]
"""The kinds of `ForgetRequest`."""

Need = Literal["history", "forget-data", "retained-data"]
"""``history``: the clients' updates of every round. The other two: the clients still have the samples that
are to be forgotten, or those that are to be kept."""

ALL_TARGETS: frozenset[Target] = frozenset(("classes", "client", "samples"))


@dataclass
class Cost:
    """What was spent on requests to clients so far.

    Attributes:
        rounds: How often clients were asked something and waited for.
        bytes_down: Tensors sent to clients, in bytes.
        bytes_up: Tensors sent by clients, in bytes.
        client_seconds: Computing time of all clients together; on a CPU, processor time.
    """

    rounds: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0

    def add(self, sent: Tensors, answers: Mapping[str, Answer]) -> None:
        """Count one question that was sent to, and answered by, these clients."""
        self.rounds += 1
        self.bytes_down += len(answers) * _size_of(sent)
        self.bytes_up += sum(_size_of(a.tensors) for a in answers.values())
        self.client_seconds += sum(a.seconds for a in answers.values())


def _size_of(tensors: Tensors) -> int:
    return sum(t.numel() * t.element_size() for state in tensors.values() for t in state.values())


class Federation(Protocol):
    """The clients, as a strategy asks them."""

    @property
    def request(self) -> ForgetRequest:
        """What is to be forgotten; the clients know it too."""

    @property
    def clients(self) -> Mapping[str, Mapping[str, int]]:
        """Client name to its number of samples in each part; sorted by the clients' index."""

    @property
    def cost(self) -> Cost:
        """What was spent so far."""

    def ask(
        self,
        task: str,
        tensors: Tensors | None = None,
        settings: Settings | None = None,
        clients: Sequence[str] | None = None,
    ) -> dict[str, Answer]:
        """Have clients run one task, and wait for all of them.

        Args:
            task: Name of the task.
            tensors: Sent to each of them.
            settings: Sent to each of them.
            clients: Whom to ask; None: all.

        Returns:
            Client name to answer, in the order of `clients`.

        Raises:
            StrategyError: If a client cannot do it.
        """


@dataclass(frozen=True)
class Outcome:
    """What a strategy made.

    Attributes:
        state: The global model after forgetting.
        change: What it does to any other affected checkpoint of the run, where it has an answer to that:
            from a checkpoint's values to new ones. None: the other checkpoints stay as they are.
        facts: What a reader of the result should know, by name: chosen thresholds, rounds, early stops.
        refused: Why nothing was changed; then ``state`` is the model as it was.
    """

    state: StateDict
    change: Callable[[StateDict], StateDict] | None = None
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    refused: str = ""


class Strategy(ABC):
    """A complete way to forget. Subclasses are frozen dataclasses; their fields are the hyper-parameters.

    Attributes:
        name: What users call it.
        paper: Where it comes from.
        targets: The kinds of request it can serve.
        needs: What must be there for it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    targets: ClassVar[frozenset[Target]]
    needs: ClassVar[frozenset[Need]]

    @abstractmethod
    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Forget what ``federation.request`` names, starting from ``history.current()``.

        Raises:
            StrategyError: If it cannot be done.
        """

    def check(self, federation: Federation, history: History) -> None:
        """Check, before anything is computed, that this strategy can serve the request.

        Raises:
            UnsupportedError: If it cannot.
        """
        if (why := self.problem(federation, history)) is not None:
            raise UnsupportedError(f"{self.name}: {why}")

    def problem(self, federation: Federation, history: History) -> str | None:
        """Why this strategy cannot serve the request, or None; subclasses add to it."""
        if (why := unsupported(self, federation.request)) is not None:
            return why
        named = {*federation.request.clients, *federation.request.samples}
        if unknown := sorted(named - set(federation.clients)):
            return f"there is no client {unknown[0]!r}: they are {', '.join(federation.clients)}"
        if "history" in self.needs and not history.has_updates:
            return (
                "it needs the clients' updates of every round, which this run did not keep; train with "
                "keep-client-updates"
            )
        counts = federation.clients.values()
        for need, part, what in (
            ("forget-data", "forget", "to be forgotten"),
            ("retained-data", "retained", "to be kept"),
        ):
            if need in self.needs and not any(c[part] for c in counts):
                return f"it needs samples that are {what}, and no client has any"
        return None


def unsupported(strategy: Strategy, request: ForgetRequest) -> str | None:
    """Why a strategy cannot serve this kind of request, or None; known before anything is trained."""
    if request.kind in strategy.targets:
        return None
    able = " and ".join(_KINDS[t] for t in sorted(strategy.targets))
    return f"it cannot forget {_KINDS[request.kind]}, only {able}"


_KINDS = {"classes": "classes", "client": "a client", "samples": "single samples"}


def holders(federation: Federation) -> list[str]:
    """The clients that have something to forget."""
    return [name for name, counts in federation.clients.items() if counts["forget"]]


def keepers(federation: Federation) -> list[str]:
    """The clients that have something to keep."""
    return [name for name, counts in federation.clients.items() if counts["retained"]]
