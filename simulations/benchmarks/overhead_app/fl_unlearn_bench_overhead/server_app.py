"""The server: blocks of rounds, bare and wrapped, each from the same start; every round is timed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_unlearn.flower import UnlearningStrategy
from simulations.quickstart.fl_unlearn_quickstart.server_app import wait_for_clients

from . import workloads

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the blocks; append a line to ``blocks.jsonl`` after each."""
    config = context.run_config
    folder = Path(str(config["out-dir"]))
    stores = folder / "stores"
    shutil.rmtree(stores, ignore_errors=True)
    stores.mkdir(parents=True)
    clients = wait_for_clients(grid)
    try:
        for number, kind in enumerate(str(config["order"]).split(",")):
            store = stores / f"block-{number}" if kind == "wrapped" else None
            arrays = ArrayRecord(workloads.new_model(config).state_dict())
            block = run_block(grid, arrays, clients, int(config["rounds"]), store)
            size = sum(len(a.data) for a in arrays.values())
            line = {"block": number, "kind": kind, "clients": clients, "model_bytes": size, **block}
            with open(folder / "blocks.jsonl", "a") as f:
                f.write(json.dumps(line) + "\n")
    finally:
        # Only now: removing large files between blocks would keep the disk busy during the next one.
        shutil.rmtree(stores)


def run_block(
    grid: Grid, arrays: ArrayRecord, clients: int, rounds: int, store: Path | None
) -> dict[str, Any]:
    """One training run; with a ``store``, wrapped in `UnlearningStrategy` as it comes."""
    strategy: Strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=clients, min_train_nodes=clients)
    opening = time.perf_counter()
    if store is not None:
        strategy = UnlearningStrategy(strategy, store=store)
    opening = time.perf_counter() - opening
    watch = Stopwatch(strategy)
    strategy.start(grid, arrays, num_rounds=rounds)
    kept = 0
    if isinstance(strategy, UnlearningStrategy):
        strategy.store.close()
        kept = sum(p.stat().st_size for p in strategy.store.folder.rglob("*") if p.is_file())
    return {"opening_seconds": opening, "kept_bytes": kept, "rounds": watch.rounds}


class Stopwatch:
    """Times the rounds of a strategy from outside, bare or wrapped alike.

    Attributes:
        rounds: For each round ``seconds`` (from configure_train to the end of aggregate_train, waiting for
            the clients included), ``server_seconds`` (those two hooks alone) and ``written_bytes`` (what the
            process sent to the disk during the hooks; None where the system does not tell).
    """

    def __init__(self, strategy: Strategy) -> None:
        self.rounds: list[dict[str, float | None]] = []
        self._began, self._configuring, self._written = 0.0, 0.0, 0
        self._configure: Callable[..., Any] = strategy.configure_train
        self._aggregate: Callable[..., Any] = strategy.aggregate_train
        setattr(strategy, "configure_train", self._configure_train)  # noqa: B010 (a method, to mypy)
        setattr(strategy, "aggregate_train", self._aggregate_train)  # noqa: B010

    def _configure_train(self, *args: Any, **kwargs: Any) -> Any:
        before = bytes_written()
        self._began = time.perf_counter()
        messages = list(self._configure(*args, **kwargs))
        self._configuring = time.perf_counter() - self._began
        self._written = (bytes_written() or 0) - (before or 0)
        return messages

    def _aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
        before, arrived = bytes_written(), time.perf_counter()
        result = self._aggregate(*args, **kwargs)
        over = time.perf_counter()
        after = bytes_written()
        self.rounds.append(
            {
                "seconds": over - self._began,
                "server_seconds": self._configuring + over - arrived,
                "written_bytes": None if after is None else self._written + after - (before or 0),
            }
        )
        return result


def bytes_written() -> int | None:
    """Bytes that this process has caused to be sent to the disk; None on systems without /proc."""
    try:
        fields = dict(line.split(": ") for line in Path(f"/proc/{os.getpid()}/io").read_text().splitlines())
        return int(fields["write_bytes"])
    except (OSError, KeyError, ValueError):
        return None
