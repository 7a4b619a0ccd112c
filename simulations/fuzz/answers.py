"""What clients may answer: one of three is not what it should be, in every phase of a request."""

from __future__ import annotations

import math
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from flwr.app import RecordDict

from fl_unlearn.calibration import judge as judge_candidates
from fl_unlearn.flower import records
from fl_unlearn.flower.ask_fisher import ask_fisher
from fl_unlearn.flower.ask_scores import ask_scores
from fl_unlearn.flower.ask_statistics import ask_statistics
from fl_unlearn.flower.broadcast import broadcast, identify
from fl_unlearn.flower.measuring import measure_both
from fl_unlearn.flower.panel import Panel
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import REST
from simulations.fuzz import arrays, exchange
from simulations.fuzz.contract import Case, Verdict
from simulations.fuzz.message_changes import changed

BAD = exchange.NODES[0]
_MOST_MEMORY = 40_000_000  # bytes, for what claims to be huge

Phase = Callable[[Panel], Any]


class Answers:
    """The server, which asks three clients; what it makes of two and of three genuine answers is known."""

    def __init__(self) -> None:
        self.state = {n: t.detach() for n, t in exchange.model().state_dict().items()}
        self.update = exchange.an_update(self.state)
        self.genuine = exchange.Genuine()
        self._folder = tempfile.TemporaryDirectory()
        self.store = RunStore(Path(self._folder.name) / "store")
        self.store.umig.connection.execute(
            "PRAGMA synchronous = OFF"
        )  # nothing here has to outlive the machine
        self.request = self.store.runs.requests.open(exchange.REQUEST, exchange.SETTINGS).id
        self.phases: dict[str, Phase] = {
            records.IDENTITY: lambda panel: identify(panel.exchange, list(panel.nodes)),
            records.FISHER: self._fisher,
            records.SCORE: self._scores,
            records.STATISTICS: self._statistics,
            records.MEASURE: lambda panel: measure_both(panel, self.state, self.state),
            records.APPLY: self._apply,
        }
        self.full = {action: self._run(action, None) for action in self.phases}
        silent = records.head(client="0", error="none")
        failing = RecordDict({records.HEAD: silent})
        self.without = {action: self._run(action, failing) for action in self.phases}

    def draw(self, random: Random) -> Case:
        """A genuine answer in one case of ten, otherwise a changed one."""
        action = random.choice([*self.phases])
        own = self.genuine.answers[action, BAD]
        mutation, content = ("as sent", own) if random.random() < 0.1 else changed(random, own)
        return Case(mutation, repr((action, content)).encode()[:2000], {"action": action, "content": content})

    def judge(self, case: Case) -> Verdict:
        """Have the server take the answers in; whatever the one is, the others' must count."""
        action, content = case.facts["action"], case.facts["content"]
        watched = any(word in case.mutation for word in ("huge", "zipped", "header", "declares"))
        if watched:
            tracemalloc.start()
        try:
            result = self._run(action, content)
            if watched and (peak := tracemalloc.get_traced_memory()[1]) > _MOST_MEMORY:
                raise AssertionError(f"{peak} bytes were allocated")
        finally:
            if watched:
                tracemalloc.stop()
        if arrays.UNPICKLED:
            raise AssertionError("something was unpickled")
        if result == self.without[action]:
            return Verdict("refused", "accepted" if case.mutation == "as sent" else "refused")
        sound = result == self.full[action] if case.mutation == "as sent" else _sound(result)
        return Verdict("accepted", "accepted" if sound else "refused")

    # ------------------------------------------------------------------ what the server makes of it
    def _run(self, action: str, content: RecordDict | None) -> Any:
        def answer(asked: str, node: int, question: RecordDict) -> RecordDict:
            own = self.genuine(asked, node, question)
            return content if content is not None and node == BAD else own

        return self.phases[action](exchange.panel(answer))

    def _fisher(self, panel: Panel) -> Any:
        found = ask_fisher(panel, self.state)
        tensors = {f"merged/{n}": t for n, t in found.merged().items()}
        tensors |= {f"reference/{n}": t for n, t in found.reference().items()}
        for name, tensor in tensors.items():
            if tensor.shape != self.state[name.partition("/")[2]].shape:
                raise AssertionError(f"the shape of {name}")
        counts = {c: (set(own) == {1, REST}, sum(own.values())) for c, own in found.counts.items()}
        return {
            "numbers": {n: t.tolist() for n, t in tensors.items()},
            "counts": [*counts.values()],
            "names": [*counts],
        }

    def _scores(self, panel: Panel) -> Any:
        found = ask_scores(panel, [self.state], self.update)
        candidates = judge_candidates(found.rows, exchange.SETTINGS)
        shares = [v for c in candidates for v in (c.forget_accuracy, c.retain_accuracy)]
        return {"numbers": [float(s) for s in shares], "shares": shares, "clients": found.clients}

    def _statistics(self, panel: Panel) -> Any:
        found = ask_statistics(panel, [self.state], 0)
        (sums,) = found.sums
        within = sums.second.clone()
        for g, s in sums.sums.items():
            within -= torch.outer(s, s) / max(1, sums.counts[g])
        least = float(torch.linalg.eigvalsh(within)[0]) / max(1e-300, float(sums.second.trace()))
        return {
            "numbers": [sums.second.abs().tolist(), max(0.0, least + 1e-6)],
            "negative": least < -1e-6,
            "names": [*found.counts],
            "counts": [(min(own.values()) >= 0, 1) for own in found.counts.values()],
        }

    def _apply(self, panel: Panel) -> Any:
        settled: list[str] = []
        settle = self.store.operations.settle

        def watched(operation: str, client: str, receipts: Sequence[str] = ()) -> None:
            settled.append(client)
            settle(operation, client, receipts)

        self.store.operations.settle = watched  # type: ignore[method-assign,assignment]
        try:
            nodes = {n: str(n - 1) for n in panel.nodes}
            broadcast(panel.exchange, self.store, "an operation", self.update, nodes, self.request)
        finally:
            del self.store.operations.settle
        return {"names": settled, "known": all(name in nodes.values() for name in settled)}


# --------------------------------------------------------------------------- what may come of it
def _sound(result: Any) -> bool:
    """Whether what the server made of an answer can be true, as far as rules can tell."""
    if not isinstance(result, dict):
        return False
    if "numbers" not in result and "names" not in result:
        return _named(result) if set(result) <= set(exchange.NODES) else _measured(result)
    counts = all(right and 0 <= n <= 20 * exchange.EXAMPLES for right, n in result.get("counts", []))
    numbers = all(math.isfinite(v) and v >= 0 for v in _flat(result.get("numbers", [])))
    shares = all(0 <= v <= 1 for v in result.get("shares", []))
    names = result.get("names", [])
    known = result.get("known", True) and not result.get("negative", False)
    return (
        counts and numbers and shares and known and len(set(names)) == len(names) and all(map(_name, names))
    )


def _named(names: dict[int, str | None]) -> bool:
    told = [n for n in names.values() if n is not None]
    return len(set(told)) == len(told) and all(map(_name, told))


def _name(name: str) -> bool:
    return 0 < len(name) <= 150 and name.isprintable() and bool(name.strip()) and not name.startswith("node-")


def _measured(result: dict[str, Any]) -> bool:
    for of in result.values():
        for measured in of.values():
            if measured.value is not None and not (
                math.isfinite(measured.value) and -1e-5 <= measured.value <= 1e12
            ):
                return False
            str(measured).encode()
    return True


def _flat(values: Any) -> list[float]:
    if isinstance(values, dict):
        values = [*values.values()]
    return [x for v in values for x in _flat(v)] if isinstance(values, list) else [float(values)]
