"""A server of ``server_fn``; the plug-in's line is the last of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvgM

from fl_unlearn import ForgetRequest
from fl_unlearn.flower import legacy
from legacy_project import task


def server_fn(context: Context) -> ServerAppComponents:
    """Momentum on the server, accuracies after each round in a file."""
    config, clients = context.run_config, 3
    out = Path(str(config["out-dir"]))
    seen: dict[int, Any] = {}

    def evaluate(round_: int, arrays: task.Arrays, _: Any) -> tuple[float, dict[str, Any]]:
        model = task.new_model()
        task.put(model, arrays)
        seen[round_] = task.accuracies(model, task.load(clients, clients + 1), int(config["forget"]))
        (out / "accuracies.json").write_text(json.dumps(seen))
        return 0.0, {}

    strategy = FedAvgM(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(task.get(task.new_model())),
        evaluate_fn=evaluate,
        server_momentum=0.5,
    )
    rounds = ServerConfig(num_rounds=int(config["num-server-rounds"]))
    forget = (ForgetRequest((int(config["forget"]),)), int(config["after-round"]))
    project = ServerAppComponents(strategy=strategy, config=rounds)
    return legacy.remember(project, store=out / "store", requests=[forget])


app = ServerApp(server_fn=server_fn)
