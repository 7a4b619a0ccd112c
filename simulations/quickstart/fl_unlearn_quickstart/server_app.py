"""The server: FedAvg as in any Flower project, then a forget request. What fl-unlearn adds is marked."""

from __future__ import annotations

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from fl_unlearn.flower import UnlearningStrategy  # <- fl-unlearn

from . import outputs, task

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, forget, report."""
    run = outputs.Run(context, grid)
    strategy: FedAvg | UnlearningStrategy = fedavg(grid, context)
    strategy = UnlearningStrategy(strategy, store=run.folder, **run.options())  # <- fl-unlearn
    run.check_data(strategy.store)
    if run.interrupted:
        strategy.store.runs.reopen()  # <- fl-unlearn: go on, be it that only the report was missing
    for request in run.requests:
        strategy.submit(request, after_round=run.after_round)  # <- fl-unlearn: what is to be forgotten

    initial = ArrayRecord(task.new_model(run.config).state_dict())
    arrays = strategy.stored_arrays() if run.resumed else initial
    rounds = int(run.config["num-server-rounds"])
    _, seconds = train(strategy, grid, context, arrays, rounds)
    if run.requests and run.config["retrain"]:
        run.retrained = retrain(run, grid, context, rounds=strategy.store.umig.last_round())
    run.write(strategy, seconds)


def fedavg(grid: Grid, context: Context) -> FedAvg:
    """FedAvg over all clients that are connected."""
    clients = wait_for_clients(grid)
    return FedAvg(
        fraction_evaluate=float(context.run_config["fraction-evaluate"]),
        min_available_nodes=clients,
        min_train_nodes=clients,
    )


def wait_for_clients(grid: Grid, settle: float = 2.0) -> int:
    """How many clients there are, once their number has not changed for ``settle`` seconds.

    The server starts before all simulated clients have registered, and is not told how many will come.
    """
    count, since = 0, time.monotonic()
    while count < 2 or time.monotonic() - since < settle:
        time.sleep(0.2)
        now = len(list(grid.get_node_ids()))
        if now != count:
            count, since = now, time.monotonic()
    return count


def train(
    strategy: FedAvg | UnlearningStrategy,
    grid: Grid,
    context: Context,
    arrays: ArrayRecord,
    rounds: int,
    train_config: ConfigRecord | None = None,
) -> tuple[Result, float]:
    """Train from ``arrays``; returns the result and the seconds it took, central evaluation aside."""
    model, test_data = task.new_model(context.run_config), task.load_test_data(context.run_config)

    evaluation = 0.0

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal evaluation
        began = time.perf_counter()
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.evaluate(model, test_data, DEVICE)
        evaluation += time.perf_counter() - began
        return MetricRecord({"test-loss": loss, "test-accuracy": accuracy})

    started = time.perf_counter()
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=rounds,
        train_config=train_config or ConfigRecord(),
        evaluate_fn=evaluate,
    )
    return result, time.perf_counter() - started - evaluation


def retrain(run: outputs.Run, grid: Grid, context: Context, rounds: int) -> outputs.Retrained:
    """The yardstick: the same federation, from the same start, without what was forgotten."""
    print("Training the yardstick: the same federation without what was forgotten", flush=True)
    store = run.yardstick_store(rounds)
    yardstick = UnlearningStrategy(fedavg(grid, context), store=store, deterministic=True)
    without = ConfigRecord(
        {"exclude-classes": run.config["forget-classes"], "exclude-clients": run.config["forget-clients"]}
    )
    initial = ArrayRecord(task.new_model(run.config).state_dict())
    result, _ = train(yardstick, grid, context, initial, rounds, without)
    return outputs.Retrained(result.arrays, outputs.client_seconds(yardstick.store))
