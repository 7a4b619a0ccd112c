"""Runs strategies on one trained federation and measures what they made; on any engine.

Every strategy starts from the same stored state. What is made is kept in a folder, a model and two JSON files
for each strategy, and not made twice; delete a file there to have it made again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_unlearn.files import write_atomically
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import Measured
from fl_unlearn.tensor_file import decode, encode
from fl_unlearn.types import StateDict
from simulations.compare.results import CHECKPOINT, COST, ORIGINAL, Graph, Row
from simulations.compare.setting import SettingError
from strategies import get
from strategies.contract import Federation, Outcome, State, Strategy, holders
from strategies.history import History
from strategies.measuring import measure_all

log = logging.getLogger("fl_unlearn.simulations")

CHECKPOINTS = 4
"""How many earlier global models are measured after a strategy changed them."""


@dataclass(frozen=True)
class Bench:
    """One trained federation, with what is to be forgotten, and where results go.

    Attributes:
        federation: Its clients.
        history: What training left behind.
        folder: Where models and measurements are kept.
        metrics: Names of what is measured.
    """

    federation: Federation
    history: History
    folder: Path
    metrics: Sequence[str] = tuple(METRICS)

    def model_path(self, name: str) -> Path:
        """File of the model that a strategy made."""
        return self.folder / f"{name}.safetensors"

    def outcome_path(self, name: str) -> Path:
        """File of what a strategy cost and said."""
        return self.folder / f"{name}.json"

    def measures_path(self, name: str) -> Path:
        """File of what was measured on a strategy's model."""
        return self.folder / f"{name}.measures.json"


def run_all(bench: Bench, strategies: Mapping[str, Strategy], say: Callable[[str], None] = log.info) -> None:
    """Run and measure every strategy that has not been run or measured yet.

    Args:
        bench: The federation.
        strategies: Name to strategy.
        say: Called with a line for each thing done.

    Raises:
        StrategyError: If a strategy fails at what it said it could do.
    """
    bench.folder.mkdir(parents=True, exist_ok=True)
    _check_request(bench)
    for name in (ORIGINAL, *strategies):
        strategy = strategies.get(name)
        change = None
        if strategy is None:
            _keep(bench, name, Outcome(bench.history.current()), {})
        elif not _is_done(bench, name):
            if (why := strategy.problem(bench.federation, bench.history)) is not None:
                say(f"{name}: not run: {why}")
                _keep_refusal(bench, name, why)
                continue
            change = _run(bench, name, strategy, say)
        _measure(bench, name, change, say)


def _check_request(bench: Bench) -> None:
    """Results of another request, kept under the same name, must not pass for this one's.

    Raises:
        SettingError: If the folder holds such.
    """
    path, request = bench.folder / "request.json", bench.federation.request.to_json()
    if not path.is_file():
        _write(path, request)
    elif (kept := _read(path)) != request:
        raise SettingError(f"{bench.folder} holds results of another request, {kept}; name another --out")


def _is_done(bench: Bench, name: str) -> bool:
    said = _read(bench.outcome_path(name))
    return bool(said) and (bench.model_path(name).is_file() or bool(said["refused"]))


def _run(
    bench: Bench, name: str, strategy: Strategy, say: Callable[[str], None]
) -> Callable[[StateDict], StateDict] | None:
    before, started = asdict(bench.federation.cost), time.perf_counter()
    outcome = strategy.unlearn(bench.federation, bench.history)
    wall = time.perf_counter() - started
    after = asdict(bench.federation.cost)
    cost = {k.replace("_", "-"): after[k] - before[k] for k in after} | {"wall-seconds": wall}
    if outcome.change is not None and not outcome.refused:
        cost |= _worst(bench, outcome)
    _keep(bench, name, outcome, cost)
    say(f"{name}: {f'refused: {outcome.refused}' if outcome.refused else f'{wall:.1f} s'}")
    return outcome.change


def _worst(bench: Bench, outcome: Outcome) -> dict[str, float]:
    """What the strategy's change makes of earlier global models."""
    assert outcome.change is not None
    forget, drop = [], []
    for number in earlier_rounds(bench.history):
        before = bench.history.global_model(number)
        after = outcome.change(before)
        scores = measure_all(bench.federation, after, before, ["accuracy"], 0)
        was, now = _retained_before(bench, number, before), scores["held-retain-accuracy"].value
        left = scores["held-forget-accuracy"].value
        drop += [was - now] if was is not None and now is not None else []
        forget += [left] if left is not None else []
    found = zip(CHECKPOINT, (forget, drop), strict=True)
    return {column.key: max(values) for column, values in found if values}


def _retained_before(bench: Bench, number: int, model: State) -> float | None:
    """Accuracy of an earlier global model on held-out samples of the rest; measured once for all."""
    path = bench.folder / "checkpoints.json"
    known: dict[str, float | None] = _read(path)
    if str(number) not in known:
        scores = measure_all(bench.federation, model, model, ["accuracy"], 0)
        known[str(number)] = scores["held-retain-accuracy"].value
        _write(path, known)
    return known[str(number)]


def earlier_rounds(history: History) -> list[int]:
    """Rounds whose global models are measured too: of the last two thirds but the last, evenly spread."""
    rounds = [n for n in history.rounds[:-1] if 3 * n >= history.rounds[-1]]
    most = min(CHECKPOINTS, len(rounds))
    return [rounds[round(i * (len(rounds) - 1) / max(1, most - 1))] for i in range(most)]


def _keep(bench: Bench, name: str, outcome: Outcome, numbers: Mapping[str, float]) -> None:
    if _is_done(bench, name):
        return
    bench.measures_path(name).unlink(missing_ok=True)  # of a model made before
    write_atomically(bench.model_path(name), encode(dict(outcome.state), ()))
    facts = {"numbers": dict(numbers), "facts": dict(outcome.facts), "refused": outcome.refused}
    _write(bench.outcome_path(name), facts)


def _keep_refusal(bench: Bench, name: str, why: str) -> None:
    _write(bench.outcome_path(name), {"numbers": {}, "facts": {}, "refused": why})


def _measure(bench: Bench, name: str, change: object, say: Callable[[str], None]) -> None:
    """Measure what has not been measured yet."""
    if not bench.model_path(name).is_file():
        return
    path = bench.measures_path(name)
    done = json.loads(path.read_text()) if path.is_file() else {}
    missing = [m for m in bench.metrics if m not in done]
    if not missing:
        return
    started = time.perf_counter()
    model, original = load_model(bench, name), bench.history.current()
    for metric in missing:
        measured = measure_all(bench.federation, model, original, [metric], bench.history.training.seed)
        done[metric] = {key: asdict(value) for key, value in measured.items()}
    _write(path, done)
    say(f"{name}: measured in {time.perf_counter() - started:.1f} s")


def load_model(bench: Bench, name: str) -> State:
    """The model that a strategy made."""
    path = bench.model_path(name)
    return dict(decode(path.read_bytes(), str(path)).state)


def rows_of(bench: Bench, names: Collection[str], seed: int) -> list[Row]:
    """All values of the named strategies (and of the original) that are in the folder."""
    out = []
    for name in (ORIGINAL, *names):
        said = _read(bench.outcome_path(name))
        refused = said.get("refused", "")
        for values in _read(bench.measures_path(name)).values():
            for key, value in values.items():
                # A refusal leaves the model as it was: its values are the original's, not the strategy's.
                m = Measured(None, 0, f"refused: {refused}") if refused else Measured(**value)
                out.append(Row(name, seed, key, m.value, m.samples, m.why))
        if bench.model_path(name).is_file():
            for key in (c.key for c in (*COST, *CHECKPOINT)):
                value = said["numbers"].get(key)
                why = "" if value is not None else _unspent(name, refused, said["numbers"])
                out.append(Row(name, seed, key, value, 0, why))
    return out


def _unspent(name: str, refused: str, numbers: Mapping[str, float]) -> str:
    """Why a cost, or what became of earlier checkpoints, is not known."""
    if name == ORIGINAL:
        return "nothing was done"
    if refused:
        return f"refused: {refused}"
    if any(c.key in numbers for c in CHECKPOINT):
        return "the request names no class, of which held-out samples could be looked at"
    return "it changes the current model alone"


def said_of(bench: Bench, name: str) -> tuple[dict[str, str | int | float], str]:
    """What a strategy reports of itself, and why it did not run or changed nothing ("": it did)."""
    said = _read(bench.outcome_path(name))
    return said.get("facts", {}), said.get("refused", "")


def graph_of(bench: Bench) -> Graph:
    """The run's UMIG, with what inherits from the data to be forgotten."""
    umig, names = bench.history.store.umig, set(holders(bench.federation))
    owners = [o for o, c in bench.history.store.clients().items() if c in names]
    roots = [n.name for n in umig.roots(owners)]
    affected = {n.name for n in umig.affected(roots)} if roots else set()
    clients = bench.history.store.clients()
    nodes = {
        n.name: (n.kind, n.round, clients.get(n.owner or "", ""), n.name in affected) for n in umig.nodes()
    }
    edges = tuple((parent, child) for child in nodes for parent in umig.parents(child))
    return Graph(nodes, edges)


def strategies_of(names: Sequence[str]) -> dict[str, Strategy]:
    """The named strategies, in the order given.

    Raises:
        StrategyError: If one is not known.
    """
    return {name: get(name) for name in names}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())
