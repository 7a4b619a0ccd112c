"""A short training and one forget request over every client, watched from the server's side."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.run_store import DATABASE
from fl_unlearn.types import ForgetRequest, UnlearnSettings

from . import task
from .watch import Watch, resident


def serve(grid: Grid, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train, forget one class, and say what it took.

    Args:
        grid: Flower's Grid; all clients are connected.
        config: The app's run config.
        folder: Where the store is while this runs.
    """
    clients, label = int(config["clients"]), int(config["forget"])
    some = min(clients, int(config["clients-per-round"]))
    inner = FedAvg(
        fraction_train=some / clients,
        min_train_nodes=some,
        min_available_nodes=clients,
        fraction_evaluate=0.0,
    )
    settings = UnlearnSettings(
        fisher_scope=str(config["scope"]),
        erase=str(config["erase"]),
        candidates=(1.0, 3.0, 10.0, 30.0),
        dampenings=(1.0,),
        calibration_models=2,
        max_retain_drop=0.2,
        timeout=3600.0,
    )
    strategy = UnlearningStrategy(inner, store=folder, settings=settings)
    watch, model = Watch(grid), task.new_model(config)
    try:
        began = time.perf_counter()
        trained = strategy.start(watch, ArrayRecord(model.state_dict()), num_rounds=int(config["rounds"]))
        model.load_state_dict(trained.arrays.to_torch_state_dict())
        training, before = time.perf_counter() - began, task.accuracies(model, label)
        size = sum(len(a.data) for a in trained.arrays.values())
        resting = resident()
        with watch:
            result = strategy.forget(watch, ForgetRequest(classes=(label,)))
        model.load_state_dict(result.state)
        database = sum(p.stat().st_size for p in folder.glob(f"{DATABASE}*"))
    finally:
        strategy.store.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "clients": clients,
        "model_bytes": size,
        "committed": result.committed,
        "message": result.message,
        "answered": len(result.asked) - len(result.failed) - len(result.silent),
        "holders": len(result.holders),
        "outstanding": len(result.outstanding),
        "accuracy_before": before,
        "accuracy_after": task.accuracies(model, label),
        "training_seconds": training,
        "seconds": watch.seconds,
        "client_seconds": result.client_seconds,
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
        "resting_bytes": resting,
        "peak_bytes": watch.peak,
        "database_bytes": database,
        "phases": watch.phases(),
    }
