"""The client's side: answering what the server asks when something is to be forgotten.

`attach` registers the handlers on an app built with decorators, `unlearning_mod` makes a mod for an app
built with ``client_fn``. Either needs two things of the project: how to build its model, and this client's
data. Only what a request needs leaves the client: sums over the named classes and over all the rest.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.flower import (
    forgotten,
    own_copies,
    own_fisher,
    own_measures,
    own_privacy,
    own_scores,
    own_statistics,
    records,
)
from fl_unlearn.flower.local import Local
from fl_unlearn.flower.naming import partition_name
from fl_unlearn.flower.own_copies import OwnCopies
from fl_unlearn.flower.targets import Keys
from fl_unlearn.privacy import Privacy
from fl_unlearn.types import (
    MeasureError,
    ModelMismatchError,
    UnlearnError,
    signature_difference,
    signature_of,
)

log = logging.getLogger(__name__)

ModelFn = Callable[..., nn.Module]
DataFn = Callable[[Context], Any]
NameFn = Callable[[Context], str]
LedgerFn = Callable[[Context], FisherLedger | None]
KeysFn = Callable[[Context], Keys]
Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]

_QUESTIONS: dict[str, Callable[[Local, ConfigRecord, RecordDict], RecordDict]] = {
    records.FISHER: own_fisher.answer,
    records.SCORE: own_scores.answer,
    records.STATISTICS: own_statistics.answer,
    records.KEYS: own_privacy.keys,
}


def _no_ledger(context: Context) -> None:
    return None


class Responder:
    """Answers the plug-in's questions: who are you, Fisher, statistics of layers, scores, apply, measures.

    Args:
        model: Builds the project's model; called with no argument or with the Context.
        data: Called with the Context; returns this client's training loader, or (training, held-out).
        client_name: The client's lasting name; default its partition id.
        copies: The models that clients keep in files.
        device: Where to compute; default CUDA when there, else the CPU.
        ledger: Called with the Context; the ledger that this client keeps of its training data, if any.
        sample_keys: Called with the Context; this client's keys of its training samples.
        privacy: What this client insists on, whatever the server asks for.
    """

    def __init__(
        self,
        model: ModelFn,
        data: DataFn,
        client_name: NameFn = partition_name,
        copies: OwnCopies | None = None,
        device: str | None = None,
        ledger: LedgerFn | None = None,
        sample_keys: KeysFn | None = None,
        privacy: Privacy | None = None,
    ) -> None:
        self.model, self.data, self.client_name, self.copies = model, data, client_name, copies
        self.ledger, self.sample_keys, self.privacy = ledger, sample_keys, privacy or Privacy()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        required = [p for p in inspect.signature(model).parameters.values() if p.default is p.empty]
        self._takes_context = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required)

    def handle(self, message: Message, context: Context) -> Message:
        """Answer one message of the plug-in; what cannot be done is answered in words."""
        action = message.metadata.message_type.partition(".")[2]
        client = self.client_name(context)
        answer = {
            records.IDENTITY: self.identity,
            records.APPLY: self.apply,
            records.MEASURE: self.measure,
        }.get(action)
        try:
            record = records.read_head(message.content)
            if answer is None:
                content = _QUESTIONS[action](self._local(client, context), record, message.content)
            else:
                content = answer(client, record, message.content, context)
            return Message(content, reply_to=message)
        except UnlearnError as e:
            return records.failure(message, client, f"{type(e).__name__}: {e}")
        except Exception as e:  # a message that lacks something, or the project's own functions
            log.exception("the question %s could not be answered", action)
            return records.failure(message, client, f"{type(e).__name__}: {e}")

    def identity(
        self, client: str, record: ConfigRecord, content: RecordDict, context: Context
    ) -> RecordDict:
        """Say which client this node is."""
        return RecordDict({records.HEAD: records.head(client=client)})

    def apply(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Apply the update to every copy of the model that this client keeps, once; answer with receipts."""
        update, store = records.read_update(content), str(record.get("store", ""))
        started = time.perf_counter()
        receipts = own_copies.apply_everywhere(
            update, context, self.copies, lambda: signature_of(self._build(context).state_dict()), store
        )
        ledger = self.ledger(context) if self.ledger else None
        if ledger and (removed := ledger.clear()):  # sums of what was forgotten, for a model that is no more
            receipts.append({"copy": "the ledger", "status": f"removed: {removed} Fisher sums"})
        return own_copies.answer(client, update, receipts, time.perf_counter() - started)

    def measure(self, client: str, record: ConfigRecord, content: RecordDict, context: Context) -> RecordDict:
        """Measure the models in the message on local data, by the metrics that it names."""
        own_privacy.uncovered(self._local(client, context), "measures")
        names = [str(name) for name in records.list_of(record, "models")]
        models = {
            n: self._load(records.read_model(content, f"{records.MODEL}.{n}"), context)[0] for n in names
        }
        seed = records.ints(record, "seed")[0]
        fresh = own_measures.untrained(lambda: self._build(context), seed, self.device)
        if len({*models.values(), fresh}) <= len(models):
            raise MeasureError("`model` must build a new model at every call, it returned one twice")
        own = self._local(client, context).own(record)
        return own_measures.answer(client, record, own, models, fresh)

    def _local(self, client: str, context: Context) -> Local:
        ledger = self.ledger or _no_ledger
        load, data = partial(self._load, context=context), partial(self.data, context)
        keys = partial(self.sample_keys, context) if self.sample_keys else None
        ledger = partial(ledger, context)
        return Local(client, load, data, self.device, ledger, context.state, self.privacy, keys)

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
    sample_keys: KeysFn | None = None,
    privacy: Privacy | None = None,
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
            called; what is computed for others goes there. An update that is applied empties it. It does not
            answer for single samples.
        sample_keys: Called with the Context; what this client calls its training samples, so that a request
            can name them: keys (texts) in the order of the training loader's data set, where one that stands
            there several times is of all these samples, or a mapping of key to position. Keys and positions
            are of the data set's order: a ``DataLoader(..., shuffle=True)`` is gone through in order for
            them, a loader that draws in another way is refused.
        privacy: What this client insists on: it refuses questions that protect its data less.

    Returns:
        The same app.
    """
    responder = Responder(model, data, client_name, copies, device, ledger, sample_keys, privacy)
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
    sample_keys: KeysFn | None = None,
    privacy: Privacy | None = None,
) -> Mod:
    """A mod that makes an app built with ``client_fn`` able to forget: ``ClientApp(fn, mods=[...])``.

    Takes what `attach` takes, and answers the plug-in's queries; every other message is passed on.
    """
    responder = Responder(model, data, client_name, copies, device, ledger, sample_keys, privacy)

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
    return forgotten.classes_for(forgotten.read(message.content), client_name(context))
