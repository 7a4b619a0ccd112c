"""The connected clients, as one session asks them: who answers, what is usable, and whether it is enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Mapping, Sequence
from statistics import median_high, median_low

import torch
from flwr.app import RecordDict

from fl_unlearn.calibration import Tally, sum_scores
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.erase_layers import Statistics
from fl_unlearn.fisher import FisherSums
from fl_unlearn.flower import measures, records, statistics
from fl_unlearn.flower.exchange import Answers, Exchange, unidentified
from fl_unlearn.layer_stats import LayerSums
from fl_unlearn.metrics.contract import Metric
from fl_unlearn.types import (
    REST,
    AnswerError,
    ClassScores,
    EraseError,
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    UnlearnSettings,
    signature_of,
)

log = logging.getLogger(__name__)

PLAUSIBLE = 20
"""How many times the examples of its largest training round a client's data may have; and how many times as
large as the others' the outputs of its hidden layers may be."""


def _mean_square(sums: LayerSums) -> float:
    return float(sums.second.diagonal().sum()) / max(1, sums.count)


class Panel:
    """Asks all connected clients and keeps what can be used.

    Attributes:
        ignored: Classes that neither are asked for nor count as retained: they were forgotten before.
        nodes: Ids of the nodes that are asked.
        names: Node id to client name, for those that gave one.
        failed: Client to the reason why an answer of it could not be used; measuring is not counted here.
        silent: Clients that did not answer some phase in time; the same.
        scored: How many clients' scores the last scoring used.
    """

    def __init__(
        self,
        exchange: Exchange,
        request: ForgetRequest,
        settings: UnlearnSettings,
        examples: Mapping[str, int],
        ignored: Sequence[int] = (),
    ) -> None:
        self.exchange, self.request, self.settings = exchange, request, settings
        self.examples, self.ignored, self.scored = examples, tuple(ignored), 0
        self.nodes: list[int] = []
        self.names: dict[int, str] = {}
        self.failed: dict[str, str] = {}
        self.silent: set[str] = set()

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

    def label(self, node: int) -> str:
        """The client's name, or a stand-in."""
        return self.names.get(node) or unidentified(node)

    def clients(self) -> list[str]:
        """Labels of all nodes asked."""
        return [self.label(n) for n in self.nodes]

    def ask_fisher(self, state: dict[str, torch.Tensor], *, passing: bool = False) -> dict[str, FisherSums]:
        """The clients' Fisher sums of one model: the requested classes apart, the rest pooled.

        Args:
            state: The model.
            passing: Whether it is one of many, which the clients' ledgers need not keep sums of.

        Raises:
            RequestError: If the clients do not know a class.
            NotEnoughAnswersError: If too few answers are usable.
        """
        s = self.settings
        asked = records.head(
            kind=s.fisher_kind,
            scope=s.fisher_scope,
            head=s.head or "",
            classes=list(self.request.classes),
            ignored=list(self.ignored),
            clients=list(self.request.clients),
            passing=passing,
        )
        if s.reference_share is not None:
            asked["reference-share"] = s.reference_share
        content = RecordDict({records.HEAD: asked, records.MODEL: records.to_arrays(state)})
        answers = self.exchange.ask(records.FISHER, dict.fromkeys(self.nodes, content))
        if kept := sum(records.from_ledger(reply) for reply in answers.ok.values()):
            log.info("%d of %d clients answered from their ledgers", kept, len(answers.ok))
        model, good = signature_of(state), dict[str, FisherSums]()
        for node, reply in sorted(answers.ok.items()):
            try:
                client = self._name(node, reply, good)
                named = not self.request.clients or client in self.request.clients
                groups = (*self.request.classes, REST) if named else (REST,)
                sums = records.read_fisher(
                    reply, kind=s.fisher_kind, scope=s.fisher_scope, groups=groups, model=model
                )
                self._plausible(client, sum(sums.counts.values()))
                first = next(iter(good.values()), sums)
                if (sums.names, sums.num_classes) != (first.names, first.num_classes):
                    raise AnswerError("other parameters or classes than another client's")
                good[client] = sums
            except AnswerError as e:
                answers.failed[node] = str(e)
        self._note(answers)
        if not good:
            self._refused()
        self._enough("Fisher", len(good))
        return good

    def ask_statistics(
        self, states: Sequence[dict[str, torch.Tensor]], position: int
    ) -> dict[str, Statistics]:
        """The clients' statistics of one hidden layer, in each of some models.

        Args:
            states: The models.
            position: Which of the layers to be erased in, in the order of a forward pass.

        Raises:
            RequestError: If the clients do not know a class.
            EraseError: If their model cannot be erased in as the settings say.
            NotEnoughAnswersError: If too few answers are usable.
        """
        asked = records.head(
            erase=self.settings.erase,
            position=[position],
            models=[len(states)],
            head=self.settings.head or "",
            classes=list(self.request.classes),
            ignored=list(self.ignored),
            clients=list(self.request.clients),
        )
        content = RecordDict({records.HEAD: asked})
        for i, state in enumerate(states):
            content[f"{records.MODEL}.{i}"] = records.to_arrays(state)
        answers = self.exchange.ask(records.STATISTICS, dict.fromkeys(self.nodes, content))
        model, good = signature_of(states[0]), dict[str, Statistics]()
        for node, reply in sorted(answers.ok.items()):
            try:
                client = self._name(node, reply, good)
                named = not self.request.clients or client in self.request.clients
                groups = (*self.request.classes, REST) if named else (REST,)
                got = statistics.read(
                    reply, groups=groups, models=len(states), position=position, model=model
                )
                first = next((a.layers for a in good.values() if a.layers), got.layers)
                if got.layers and got.layers != first:
                    raise AnswerError("other layers to erase in than another client's")
                good[client] = got
            except AnswerError as e:
                answers.failed[node] = str(e)
        self._drop_implausible(answers, good)
        self._note(answers)
        if not good:
            self._refused()
        self._enough("statistics", len(good))
        return good

    def _drop_implausible(self, answers: Answers, good: dict[str, Statistics]) -> None:
        """Observations a sample, and their size, are alike everywhere: none may have many times the others'.

        Far larger outputs would hide all others': the erasure leaves directions of little variance alone.
        """
        sizes = {c: max(_mean_square(s) for s in a.sums) for c, a in good.items() if a.sums}
        largest = PLAUSIBLE**2 * median_high(sizes.values()) if sizes else 0.0
        for client, size in sizes.items():
            if size > largest:
                self._drop(
                    client,
                    f"outputs of mean square {size:.3g}, where at most {largest:.3g} is plausible",
                    answers,
                    good,
                )
        rates = {
            c: max(s.count for s in a.sums) / max(1, self.examples[c])
            for c, a in good.items()
            if a.sums and c in self.examples
        }
        usual = median_low(rates.values()) if rates else 0.0
        for client, rate in rates.items():
            if rate > PLAUSIBLE * max(usual, 1.0):
                why = f"{rate:.0f} observations for each sample it trained on, where {usual:.0f} are usual"
                self._drop(client, why, answers, good)

    def _drop(self, client: str, why: str, answers: Answers, good: dict[str, Statistics]) -> None:
        answers.failed[next(n for n, name in self.names.items() if name == client)] = why
        del good[client]

    def ask_scores(
        self, states: Sequence[dict[str, torch.Tensor]], base: DampeningUpdate | None
    ) -> list[list[Tally]]:
        """The clients' scores, added: one row per model; in it the model as it is, then each candidate.

        Args:
            states: The models.
            base: The update of which all candidates are variants; None: no candidates.

        Raises:
            NotEnoughAnswersError: If too few answers are usable.
        """
        grid = self.settings.grid if base else ()
        head = records.head(
            models=[len(states)],
            thresholds=[t for t, _ in grid],
            dampenings=[lam for _, lam in grid],
            classes=list(self.request.classes),
            samples=[self.settings.calibration_samples],
            head=self.settings.head or "",
        )
        content = RecordDict({records.HEAD: head, **(records.write_update(base) if base else {})})
        for i, state in enumerate(states):
            content[f"{records.MODEL}.{i}"] = records.to_arrays(state)
        answers = self.exchange.ask(records.SCORE, dict.fromkeys(self.nodes, content))
        good: dict[str, list[list[ClassScores]]] = {}
        for node, reply in sorted(answers.ok.items()):
            try:
                client = self._name(node, reply, good)
                scores = records.read_scores(reply, models=len(states), candidates=1 + len(grid))
                self._plausible(client, max((sum(row[0].total.values()) for row in scores), default=0))
                good[client] = scores
            except AnswerError as e:
                answers.failed[node] = str(e)
        self._note(answers)
        self._enough("scoring", len(good))
        self.scored = len(good)
        return sum_scores(good, self.request, self.ignored)

    def ask_measures(
        self, metrics: Sequence[Metric], states: Mapping[str, dict[str, torch.Tensor]]
    ) -> list[measures.Answer | str]:
        """What the clients measure of some models, each on its own data; of one that fails, why.

        Args:
            metrics: What is to be measured.
            states: The models, by the names in `measures`.
        """
        head = records.head(
            measures=[m.name for m in metrics],
            models=list(states),
            classes=list(self.request.classes),
            ignored=list(self.ignored),
            clients=list(self.request.clients),
            head=self.settings.head or "",
            samples=[self.settings.calibration_samples],
            seed=[0],  # the same in every request, so that their numbers can be compared
        )
        content = RecordDict({records.HEAD: head})
        for name, state in states.items():
            content[f"{records.MODEL}.{name}"] = records.to_arrays(state)
        answers = self.exchange.ask(records.MEASURE, dict.fromkeys(self.nodes, content))
        good: dict[str, measures.Answer] = {}
        for node, reply in sorted(answers.ok.items()):
            try:
                client = self._name(node, reply, good)
                given = measures.read(reply, metrics=metrics, models=[*states])
                self._plausible(client, max((n.samples for n in given.numbers.values()), default=0))
                good[client] = given
            except AnswerError as e:
                answers.failed[node] = str(e)
                log.warning("what client node %d measured is not used: %s", node, e)
        # Not noted as failed or silent: what these clients answered before, they answered.
        unanswered = ["no answer in time"] if answers.silent else []
        return [*good.values(), *map(measures.storable, answers.failed.values()), *unanswered]

    def _name(self, node: int, reply: RecordDict, others: Container[str]) -> str:
        client = records.read_client(reply)
        if client in others or client != self.names.setdefault(node, client):
            raise AnswerError(f"node {node} answers as client {client!r}, which is another node's name")
        return client

    def _plausible(self, client: str, samples: int) -> None:
        """A count weighs in every sum: it must bear some relation to what the client trained on."""
        trained = self.examples.get(client)
        most = max(self.examples.values(), default=None) if trained is None else trained
        if most is not None and samples > PLAUSIBLE * max(most, 1):
            who = "no known client" if trained is None else "this client"
            what = "more than" if trained is None else "at most"
            raise AnswerError(f"{samples} samples, where {who} trained on {what} {most} in a round")

    def _note(self, answers: Answers) -> None:
        self.failed.update({self.label(n): why for n, why in answers.failed.items()})
        self.silent.update(self.label(n) for n in answers.silent)

    def _refused(self) -> None:
        """Raise what the clients say is wrong with the request or its settings, if they do."""
        for kind in (RequestError, EraseError):
            for why in self.failed.values():
                if why.startswith(f"{kind.__name__}: "):
                    raise kind(why.removeprefix(f"{kind.__name__}: "))

    def _enough(self, phase: str, answered: int) -> None:
        if answered >= max(1, self.settings.min_answers * len(self.nodes)):
            return
        reasons = "; ".join(f"{c}: {why[:300]}" for c, why in list(self.failed.items())[:3])
        raise NotEnoughAnswersError(
            f"{answered} of {len(self.nodes)} clients gave a usable answer to the {phase} phase, "
            f"{self.settings.min_answers:.0%} are needed; nothing was changed. "
            + (f"Reasons: {reasons}. " if reasons else "")
            + "See the clients' logs, raise the timeout, or lower min_answers"
        )
