"""A federation in one process: clients in turn, no messages, the same tasks as behind Flower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fl_unlearn.types import ForgetRequest
from strategies import tasks
from strategies.client import PARTS, Client
from strategies.contract import Cost
from strategies.errors import StrategyError
from strategies.tasks import Answer, Settings, Tensors


class LocalFederation:
    """Clients in this process.

    Args:
        clients: The clients.
        request: What is to be forgotten; they know it too.
    """

    def __init__(self, clients: Sequence[Client], request: ForgetRequest) -> None:
        self._clients = {c.name: c for c in clients}
        self._request, self._cost = request, Cost()
        self._counts: dict[str, Mapping[str, int]] = {
            c.name: {part: c.count(part) for part in PARTS} for c in clients
        }

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
        """Have clients run one task, one after another; see `strategies.contract.Federation`."""
        names = list(self._clients) if clients is None else list(clients)
        if unknown := [n for n in names if n not in self._clients]:
            raise StrategyError(f"there is no client {unknown[0]!r}: they are {', '.join(self._clients)}")
        sent = tensors or {}
        answers = {n: tasks.run(task, self._clients[n], sent, settings or {}) for n in names}
        self._cost.add(sent, answers)
        return answers
