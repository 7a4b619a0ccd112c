"""The connected clients, as one session asks them: who answers, what is usable, and whether it is enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.exchange import Exchange, unidentified
from fl_unlearn.flower.targets import Targets
from fl_unlearn.types import (
    AnswerError,
    EraseError,
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    UnlearnSettings,
)

log = logging.getLogger(__name__)

PLAUSIBLE = 20
"""How many times the examples of its largest training round a client's data may have; and how many times as
large as the others' the outputs of its hidden layers may be."""

Take = Callable[[str, RecordDict], None]
"""Takes in one client's answer, or raises AnswerError."""


class Panel:
    """Asks all connected clients and keeps what can be used.

    Attributes:
        targets: What each client is told of the request; where that differs from client to client, only
            those are asked whose `names` are known.
        ignored: Classes that neither are asked for nor count as retained: they were forgotten before.
        nodes: Ids of the nodes that are asked.
        names: Node id to client name, for those that gave one.
        remembered: The same, of nodes that gave one in an earlier run; only to name those that fail.
        failed: Client to the reason why an answer of it could not be used; measuring is not counted here.
        silent: Clients that did not answer some phase in time; the same.
        answered: Those whose sums the Fisher phase added, where these came as one sum.
        released: Noise multipliers of what each client was asked to let out with noise, ever of this request.
        on_release: Called with these when there are more, before the clients are asked.
    """

    def __init__(
        self,
        exchange: Exchange,
        request: ForgetRequest,
        settings: UnlearnSettings,
        examples: Mapping[str, int],
        ignored: Sequence[int] = (),
        targets: Targets | None = None,
    ) -> None:
        self.targets = targets or Targets(request)
        self.exchange, self.request, self.settings = exchange, request, settings
        self.examples, self.ignored = examples, tuple(ignored)
        self.nodes: list[int] = []
        self.names: dict[int, str] = {}
        self.remembered: Mapping[int, str] = {}
        self.failed: dict[str, str] = {}
        self.silent: set[str] = set()
        self.answered: list[str] = []
        self.released: list[float] = []
        self.on_release: Callable[[Sequence[float]], None] = lambda released: None

    def wait_for_clients(self) -> None:
        """Wait until enough clients are connected.

        Raises:
            NotEnoughAnswersError: If they are not within the timeout.
        """
        deadline, need = time.monotonic() + self.settings.timeout, self.settings.min_clients
        while len(nodes := list(self.exchange.grid.get_node_ids())) < need:
            if time.monotonic() > deadline:
                raise NotEnoughAnswersError(
                    f"{len(nodes)} clients were connected after {self.settings.timeout:g} s, {need} are "
                    "needed; nothing was changed. Start the clients, or lower min_clients"
                )
            time.sleep(0.2)
        self.nodes = sorted(nodes)

    def release(self, *multipliers: float) -> None:
        """Note noisy answers that are about to be asked for: what is asked may come, whatever goes wrong."""
        self.released += multipliers
        self.on_release(self.released)

    def label(self, node: int) -> str:
        """The client's name, or a stand-in."""
        name = self.remembered.get(node)
        return self.names.get(node) or (None if name in self.names.values() else name) or unidentified(node)

    def clients(self) -> list[str]:
        """Labels of all nodes asked."""
        return [self.label(n) for n in self.nodes]

    def collect(
        self, action: str, content: RecordDict, take: Take, nodes: Sequence[int] | None = None
    ) -> tuple[dict[int, str], list[int]]:
        """Ask clients one thing; each answer is taken in as it arrives, and not held.

        Args:
            action: One of `records.ACTIONS`.
            content: The question.
            take: Called with the client's name and its answer.
            nodes: Whom to ask; None: all.

        Returns:
            Node to the reason why its answer was not used, and the nodes that did not answer.
        """
        asked = self.nodes if nodes is None else nodes
        good, failed, silent = set[str](), dict[int, str](), set(asked)
        questions = {node: q for node, q in self._questions(content).items() if node in silent}
        for node in silent - questions.keys():
            failed[node] = "it did not say which client it is, so that it cannot be told what it is asked for"
        silent &= questions.keys()
        for node, reply in self.exchange.each(action, questions):
            silent.discard(node)
            try:
                if isinstance(reply, str):
                    raise AnswerError(reply)
                client = self._name(node, reply, good)
                if self._distrusted(node):
                    raise AnswerError("the settings distrust it (defence.distrusted)")
                take(client, reply)
                good.add(client)
            except AnswerError as e:
                failed[node] = str(e)
        return failed, sorted(silent)

    def _questions(self, content: RecordDict) -> dict[int, RecordDict]:
        """A question to each node; what only one client may know is added to that client's."""
        if not self.targets.personal:
            return dict.fromkeys(self.nodes, content)
        head, out = content.config_records[records.HEAD], {}
        for node in self.nodes:
            if name := self.names.get(node):
                own = ConfigRecord({**head, **self.targets.told(name)})
                out[node] = RecordDict({**content, records.HEAD: own})
        return out

    def gather(self, phase: str, action: str, content: RecordDict, take: Take) -> None:
        """As `collect`, for a phase that cannot do without: failures are noted, and enough must be usable.

        Raises:
            RequestError: If no answer is usable, and the clients say that the request is wrong.
            EraseError: The same, of the settings for erasure.
            NotEnoughAnswersError: If too few answers are usable.
        """
        failed, silent = self.collect(action, content, take)
        self.note(failed, silent)
        self.enough(phase, len(self.nodes) - len(failed) - len(silent))

    def reject(self, phase: str, wrong: Mapping[str, str], usable: int) -> None:
        """Note answers that were taken in but cannot be used, as a comparison of all of them shows.

        Args:
            phase: What they answered.
            wrong: Client to the reason.
            usable: How many answers are left.

        Raises:
            NotEnoughAnswersError: If those are too few.
        """
        log.warning("%s answers not used: %s", phase, dict(list(wrong.items())[:10]))
        self.failed.update(wrong)
        self.enough(phase, usable)

    def require(self, named: Collection[str], answered: Collection[str]) -> None:
        """Check that named clients gave a usable answer.

        Raises:
            RequestError: If one says that the request is wrong.
            NotEnoughAnswersError: If one did not.
        """
        for client in sorted(set(named) - set(answered)):
            why = self.failed.get(client, "it did not answer")
            if why.startswith("RequestError: "):
                raise RequestError(f"client {client!r} says: {why.removeprefix('RequestError: ')}")
            raise NotEnoughAnswersError(
                f"client {client!r}, whose data is to be forgotten, gave no usable answer: {why}; nothing "
                "was changed. Repeat the request when it can answer"
            )

    def note(self, failed: Mapping[int, str], silent: Sequence[int] = ()) -> None:
        """Note whose answer could not be used, and who did not answer."""
        self.failed.update({self.label(n): why for n, why in failed.items()})
        self.silent.update(self.label(n) for n in silent)

    def _name(self, node: int, reply: RecordDict, others: Container[str]) -> str:
        client = records.read_client(reply)
        if client in others or client != self.names.setdefault(node, client):
            raise AnswerError(f"node {node} answers as client {client!r}, which is another node's name")
        return client

    def _distrusted(self, node: int) -> bool:
        """Also a node that gave another name before is that client still, whatever it says now."""
        named = {self.names.get(node), self.remembered.get(node)}
        return not named.isdisjoint(self.settings.defence.distrusted)

    def plausible(self, client: str, samples: int) -> None:
        """Check a count, which weighs in every sum: it must bear some relation to what the client trained on.

        Raises:
            AnswerError: If it does not.
        """
        trained = self.examples.get(client)
        most = max(self.examples.values(), default=None) if trained is None else trained
        if most is not None and samples > PLAUSIBLE * max(most, 1):
            who = "no known client" if trained is None else "this client"
            what = "more than" if trained is None else "at most"
            raise AnswerError(f"{samples} samples, where {who} trained on {what} {most} in a round")

    def _refused(self) -> None:
        """Raise what the clients say is wrong with the request or its settings, if they do."""
        for kind in (RequestError, EraseError):
            for why in self.failed.values():
                if why.startswith(f"{kind.__name__}: "):
                    raise kind(why.removeprefix(f"{kind.__name__}: "))

    def enough(self, phase: str, answered: int) -> None:
        """Check that enough answers of a phase are usable.

        Raises:
            RequestError: If none is, and the clients say that the request is wrong.
            EraseError: The same, of the settings for erasure.
            NotEnoughAnswersError: If too few are.
        """
        if not answered:
            self._refused()
        asked = sum(not self._distrusted(node) for node in self.nodes)
        if answered >= max(1, self.settings.min_answers * asked):
            return
        reasons = "; ".join(f"{c}: {why[:300]}" for c, why in list(self.failed.items())[:3])
        raise NotEnoughAnswersError(
            f"{answered} of {len(self.nodes)} clients gave a usable answer to the {phase} phase, "
            f"{self.settings.min_answers:.0%} are needed; nothing was changed. "
            + (f"Reasons: {reasons}. " if reasons else "")
            + "See the clients' logs, raise the timeout, or lower min_answers"
        )
