"""What a server may send to a client: in every phase, messages that are not what they should be."""

from __future__ import annotations

import copy
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from random import Random

import torch
from flwr.app import Context, Message, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.client import Responder
from fl_unlearn.flower.own_copies import OwnCopies
from fl_unlearn.tensor_file import encode
from simulations.fuzz import arrays, exchange
from simulations.fuzz.answers import Answers
from simulations.fuzz.contract import Case, Verdict
from simulations.fuzz.message_changes import changed

_MOST_MEMORY = 40_000_000  # bytes, for what claims to be huge
_COPY = "last"


class Questions:
    """A client that keeps one copy of the model in its Context and one in a file."""

    def __init__(self) -> None:
        server = Answers()
        self.questions, self.state = server.genuine.questions, server.state
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "copy.safetensors"
        self.file = encode(self.state)
        self.path.write_bytes(self.file)
        self.arrays = records.to_arrays(self.state)
        self.known = Path(self._folder.name) / "known"
        self.copies = OwnCopies(lambda context: self.known)
        self.responder = Responder(exchange.model, exchange.data, copies=self.copies, device="cpu")
        self._register()

    def draw(self, random: Random) -> Case:
        """A genuine question in one case of ten, otherwise a changed one."""
        action = random.choice([*self.questions])
        own = self.questions[action]
        mutation, content = ("as sent", own) if random.random() < 0.1 else changed(random, own)
        return Case(mutation, repr((action, content)).encode()[:2000], {"action": action, "content": content})

    def judge(self, case: Case) -> Verdict:
        """Have the client answer; only a sound update may change anything that it keeps."""
        context = exchange.context_of(1)
        context.state[_COPY] = copy.copy(self.arrays)
        watched = any(word in case.mutation for word in ("huge", "zipped", "header", "declares"))
        if watched:
            tracemalloc.start()
        try:
            reply = self._ask(case, context)
            if watched and (peak := tracemalloc.get_traced_memory()[1]) > _MOST_MEMORY:
                raise AssertionError(f"{peak} bytes were allocated")
        finally:
            if watched:
                tracemalloc.stop()
        file, after = self.path.read_bytes(), context.state.array_records[_COPY]
        if case.facts["action"] == records.APPLY:
            self.path.write_bytes(self.file)
            self._register()
        if arrays.UNPICKLED:
            raise AssertionError("something was unpickled")
        head = records.read_head(reply)
        if head.get("client") != "0":
            raise AssertionError(f"the client answered as {head.get('client')!r}")
        same = file == self.file and after == self.arrays
        expected = "accepted" if case.mutation == "as sent" else "refused"
        if "error" in head:
            return Verdict("refused" if same else "accepted", expected)
        if case.facts["action"] == records.APPLY:
            sound = self._only_named(case.facts["content"], records.to_state(after))
        else:
            sound = same
        return Verdict("accepted", "accepted" if sound else "refused")

    def _register(self) -> None:
        """The copy as it is known before any question."""
        shutil.rmtree(self.known, ignore_errors=True)
        self.copies.registry(exchange.context_of(1)).add(self.path, [], name=None, personal=False)

    def _ask(self, case: Case, context: Context) -> RecordDict:
        question = Message(copy.deepcopy(case.facts["content"]), 1, f"query.{case.facts['action']}")
        reply: Message = self.responder.handle(question, context)
        return reply.content

    def _only_named(self, content: RecordDict, after: dict[str, torch.Tensor]) -> bool:
        """Whether exactly the elements that the message names were multiplied, by what it says."""
        expected = {n: t.clone() for n, t in self.state.items()}
        found = content.array_records[records.UPDATE]
        for key, array in found.items():
            kind, _, name = key.partition("/")
            if kind == "i":
                indices = torch.from_numpy(arrays.values_of(array).copy()).long()
                factors = torch.from_numpy(arrays.values_of(found[f"f/{name}"]).copy())
                expected[name].reshape(-1)[indices] *= factors
        return after.keys() == expected.keys() and all(torch.equal(after[n], t) for n, t in expected.items())
