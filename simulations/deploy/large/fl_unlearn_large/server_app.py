"""The server: FedAvg, and a request to forget one class."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_unlearn import ForgetRequest
from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.types import UnlearnSettings

from . import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train and forget.

    Raises:
        RuntimeError: If the request was not committed.
    """
    logging.getLogger("fl_unlearn").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("fl_unlearn").setLevel(logging.INFO)
    config, clients = context.run_config, _wait_for_clients(grid)
    strategy = UnlearningStrategy(
        FedAvg(fraction_evaluate=0.0, min_available_nodes=clients, min_train_nodes=clients),
        store=Path(str(config["out-dir"]) or "outputs/large"),
        settings=UnlearnSettings(timeout=float(config["timeout"])),
    )
    request = ForgetRequest(classes=(int(config["forget-class"]),))
    strategy.submit(request, after_round=int(config["forget-after-round"]) or None)
    initial = ArrayRecord(task.new_model(int(config["megabytes"])).state_dict())
    strategy.start(grid, initial, num_rounds=int(config["num-server-rounds"]))
    result = strategy.results[0]
    if not result.committed:
        raise RuntimeError(f"the request was not committed: {result.message}")
    print(
        f"the request took {result.wall_seconds:.1f} s, {result.bytes_down / 1e6:.1f} MB to and "
        f"{result.bytes_up / 1e6:.1f} MB from the clients, who sent {len(result.receipts)} receipts",
        flush=True,
    )


def _wait_for_clients(grid: Grid) -> int:
    """How many clients there are: at least two, and no more for two seconds."""
    count, since = 0, time.monotonic()
    while count < 2 or time.monotonic() - since < 2.0:
        time.sleep(0.2)
        if (now := len(list(grid.get_node_ids()))) != count:
            count, since = now, time.monotonic()
    return count
