"""The client's side: answering what the server asks when something is to be forgotten.

`attach` registers the handlers on an app built with decorators, `unlearning_mod` makes a mod for an app
built with ``client_fn``. Either needs two things of the project: how to build its model, and this client's
data. Only what a request needs leaves the client: sums over the named classes and over all the rest.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fl_unlearn.batches import sample, take_rows, to_device, unpack
from fl_unlearn.erase_layers import Hidden, Statistics, find_layers
from fl_unlearn.fisher import find_head, fisher_diagonal
from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.flower import own_copies, own_measures, records, statistics
from fl_unlearn.flower.naming import partition_name
from fl_unlearn.flower.own_copies import OwnCopies
from fl_unlearn.flower.own_data import groups, split
from fl_unlearn.layer_stats import layer_sums
from fl_unlearn.types import (
    FisherError,
    MeasureError,
    ModelMismatchError,
    RequestError,
    UnlearnError,
    signature_difference,
    signature_of,
)
from fl_unlearn.verify import score_candidates

ModelFn = Callable[..., nn.Module]
DataFn = Callable[[Context], Any]
NameFn = Callable[[Context], str]
LedgerFn = Callable[[Context], FisherLedger | None]
Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


class Responder:
    """Answers the plug-in's questions: who are you, Fisher, statistics of layers, scores, apply, measures.

    Args:
        model: Builds the project's model; called with no argument or with the Context.
        data: Called with the Context; returns this client's training loader, or (training, held-out).
        client_name: The client's lasting name; default its partition id.
        copies: The models that clients keep in files.
        device: Where to compute; default CUDA when there, else the CPU.
        ledger: Called with the Context; the ledger that this client keeps of its training data, if any.
    """

    def __init__(
        self,
        model: ModelFn,
        data: DataFn,
        client_name: NameFn = partition_name,
        copies: OwnCopies | None = None,
        device: str | None = None,
        ledger: LedgerFn | None = None,
    ) -> None:
        self.model, self.data, self.client_name, self.copies = model, data, client_name, copies
        self.ledger = ledger
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        required = [p for p in inspect.signature(model).parameters.values() if p.default is p.empty]
        self._takes_context = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required)

    def handle(self, message: Message, context: Context) -> Message:
        """Answer one message of the plug-in; what cannot be done is answered in words."""
        action = message.metadata.message_type.partition(".")[2]
        client = self.client_name(context)
        answer = {
            records.IDENTITY: self.identity,
            records.FISHER: self.fisher,
            records.SCORE: self.scores,
            records.APPLY: self.apply,
            records.STATISTICS: self.statistics,
            records.MEASURE: self.measure,
        }[action]
        try:
            record = records.read_head(message.content)
            return Message(answer(client, record, message.content, context), reply_to=message)
        except UnlearnError as e:
            return records.failure(message, client, f"{type(e).__name__}: {e}")

    def identity(
        self, client: str, record: ConfigRecord, content: RecordDict, context: Context
    ) -> RecordDict:
        """Say which client this node is."""
        return RecordDict({records.HEAD: records.head(client=client)})

    def fisher(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Fisher sums of the model in the message over this client's training data, or from its ledger."""
        model, names = self._load(records.read_model(content), context)
        classes, ignored = groups(client, record)
        head, share = str(record["head"]) or None, record.get("reference-share")
        self._check_classes(model, classes, head)

        asked: dict[str, Any] = {"kind": str(record["kind"]), "scope": str(record["scope"]), "head": head}
        asked |= {"device": self.device, "reference_share": share}
        ledger, held = self.ledger(context) if self.ledger else None, False
        if ledger is None:
            loader = split(self.data(context))[0]
            started = time.perf_counter()
            sums = fisher_diagonal(model, loader, keep_classes=[*classes, *ignored], **asked)
            sums = sums.without(ignored)
        else:
            started, asked["keep"] = time.perf_counter(), record.get("passing") is not True
            sums, held = ledger.answer(
                model, lambda: split(self.data(context))[0], classes=classes, ignored=ignored, **asked
            )
        for group, tensors in sums.sums.items():
            sums.sums[group] = {names[n]: t for n, t in tensors.items()}
        return records.write_fisher(client, sums, time.perf_counter() - started, ledger=held)

    @staticmethod
    def _check_classes(model: nn.Module, classes: list[int], head: str | None) -> None:
        try:
            count = find_head(model, head)[1].out_features
        except FisherError:
            return
        if unknown := [c for c in classes if c >= count]:
            raise RequestError(f"unknown class {unknown[0]}: the model has the classes 0 to {count - 1}")

    def statistics(
        self, client: str, record: ConfigRecord, content: RecordDict, context: Context
    ) -> RecordDict:
        """Sums of one hidden layer's outputs in each model of the message, over local training data."""
        (classes, ignored), head = groups(client, record), str(record["head"]) or None
        layers: list[Hidden] = []
        seconds, sums = 0.0, []
        for i in range(records.ints(record, "models")[0]):
            model, names = self._load(records.read_model(content, f"{records.MODEL}.{i}"), context)
            self._check_classes(model, classes, head)
            batches = iter(split(self.data(context))[0])
            first = next((b for b in batches if len(unpack(b)[1])), None)
            if first is None:  # without a sample to run, nothing is known of the model
                return statistics.write(client, Statistics(), seconds)
            started = time.perf_counter()
            if not layers:
                rows = to_device(take_rows(unpack(first)[0], slice(2)), self.device)
                layers = find_layers(model, rows, str(record["erase"]), head=head)
            at = layers[records.ints(record, "position")[0]].layer
            data = chain([first], batches)
            sums.append(layer_sums(model, data, [at], classes, ignored=ignored, device=self.device)[at])
            seconds += time.perf_counter() - started
        theirs = tuple(replace(h, weight=names[h.weight], shift=names[h.shift]) for h in layers)
        return statistics.write(client, Statistics(theirs, tuple(sums)), seconds)

    def scores(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Scores of each model in the message, as it is and under each candidate, on local data."""
        thresholds, dampenings = (records.list_of(record, key) for key in ("thresholds", "dampenings"))
        grid = [(float(t), float(lam)) for t, lam in zip(thresholds, dampenings, strict=True)]
        base = records.read_update(content) if grid else None
        # Gathered once: loaders may shuffle or be exhausted, and all models must be scored on the same data.
        parts = split(self.data(context))
        batches = sample(
            chain.from_iterable(reversed(parts)),
            records.ints(record, "classes"),
            records.ints(record, "samples")[0],
        )
        seconds, rows = 0.0, []
        for i in range(records.ints(record, "models")[0]):
            model, names = self._load(records.read_model(content, f"{records.MODEL}.{i}"), context)
            own = base.renamed({theirs: name for name, theirs in names.items()}) if base else None
            candidates = [None, *(own.variant(t, lam) for t, lam in grid)] if own else [None]
            head = str(record["head"]) or None
            started = time.perf_counter()
            rows.append(score_candidates(model, batches, candidates, device=self.device, head=head))
            seconds += time.perf_counter() - started
        return records.write_scores(client, rows, seconds)

    def apply(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Apply the update to every copy of the model that this client keeps, once; answer with receipts."""
        update = records.read_update(content)
        started = time.perf_counter()
        receipts = own_copies.apply_everywhere(
            update, context, self.copies, lambda: signature_of(self._build(context).state_dict())
        )
        ledger = self.ledger(context) if self.ledger else None
        if ledger and (removed := ledger.clear()):  # sums of what was forgotten, for a model that is no more
            receipts.append({"copy": "the ledger", "status": f"removed: {removed} Fisher sums"})
        return records.write_applied(
            client,
            update.digest,
            own_copies.shortened(receipts),
            time.perf_counter() - started,
            unsettled=own_copies.failures(receipts),
        )

    def measure(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Measure the models in the message on local data, by the metrics that it names."""
        names = [str(name) for name in records.list_of(record, "models")]
        models = {
            n: self._load(records.read_model(content, f"{records.MODEL}.{n}"), context)[0] for n in names
        }
        seed = records.ints(record, "seed")[0]
        fresh = own_measures.untrained(lambda: self._build(context), seed, self.device)
        if len({*models.values(), fresh}) <= len(models):
            raise MeasureError("`model` must build a new model at every call, it returned one twice")
        return own_measures.answer(client, record, self.data(context), models, fresh)

    def _build(self, context: Context) -> nn.Module:
        return self.model(context) if self._takes_context else self.model()

    def _load(self, arrays: ArrayRecord, context: Context) -> tuple[nn.Module, dict[str, str]]:
        """The project's model with the values of a message, and its names to the message's names."""
        model = self._build(context)
        own, state = model.state_dict(), records.to_state(arrays)
        names = dict(zip(own, own, strict=True))
        # Legacy apps send a plain list of arrays, which Flower names "0", "1", ... in state_dict order.
        if set(state) != set(own) and set(state) == {str(i) for i in range(len(own))}:
            names = {n: str(i) for i, n in enumerate(own)}
        theirs = {n: state[names[n]] for n in own if names[n] in state}
        extra = {n: t for n, t in state.items() if n not in names.values()}
        difference = signature_difference(signature_of(own), signature_of({**theirs, **extra}))
        if difference:
            raise ModelMismatchError(f"the server's model is not the one `model` builds: {difference}")
        model.load_state_dict(theirs)
        return model.to(self.device).eval(), names


def attach(
    app: ClientApp,
    *,
    model: ModelFn,
    data: DataFn,
    client_name: NameFn = partition_name,
    copies: OwnCopies | None = None,
    device: str | None = None,
    ledger: LedgerFn | None = None,
) -> ClientApp:
    """Make an app built with decorators able to forget.

    Args:
        app: The project's ClientApp.
        model: Builds the project's model; called with no argument or, if it takes one, with the Context.
        data: Called with the Context; returns this client's training loader, or (training, held-out): many
            measures need both. It must still hold what is to be forgotten when the request is served: without
            the data, a client cannot say what depends on it, nor that it ever had it (see ``all_affected`` in
            `UnlearnSettings`).
        client_name: The client's lasting name; default its partition id.
        copies: The models that clients keep in files, which training code registers with `OwnCopies.keep`;
            those in ``context.state`` are found without.
        device: Where to compute; default CUDA when there, else the CPU.
        ledger: Called with the Context; a `FisherLedger` in a folder of this client's own for sums over its
            training data, or None. Questions it holds for are answered from there, and ``data`` is not
            called; what is computed for others goes there. An update that is applied empties it.

    Returns:
        The same app.
    """
    responder = Responder(model, data, client_name, copies, device, ledger)
    for action in records.ACTIONS:
        app.query(action)(responder.handle)
    return app


def unlearning_mod(
    *,
    model: ModelFn,
    data: DataFn,
    client_name: NameFn = partition_name,
    copies: OwnCopies | None = None,
    device: str | None = None,
    ledger: LedgerFn | None = None,
) -> Mod:
    """A mod that makes an app built with ``client_fn`` able to forget: ``ClientApp(fn, mods=[...])``.

    Takes what `attach` takes, and answers the plug-in's queries; every other message is passed on.
    """
    responder = Responder(model, data, client_name, copies, device, ledger)

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        if message.metadata.message_type.partition(".")[2] in records.ACTIONS:
            return responder.handle(message, context)
        if copies is not None and message.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
            own_copies.note_received(message, context)
        return call_next(message, context)

    return mod


def forgotten_classes(
    message: Message, context: Context, client_name: NameFn = partition_name
) -> tuple[int, ...]:
    """The classes that this client must leave out of its training from now on; empty before any request.

    Args:
        message: A training message of a server with `UnlearningStrategy`.
        context: The client's Context.
        client_name: As given to `attach`.
    """
    record = message.content.config_records.get(records.FORGOTTEN)
    if record is None:
        return ()
    own = client_name(context)
    requests = [json.loads(str(r)) for r in records.list_of(record, "requests")]
    return tuple(
        sorted({int(c) for r in requests for c in r["classes"] if not r["clients"] or own in r["clients"]})
    )
