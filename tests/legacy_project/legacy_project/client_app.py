"""Clients of ``client_fn``; what the plug-in needs are the mod and `forgotten_classes`."""

from __future__ import annotations

from typing import Any

from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

from fl_unlearn.flower import unlearning_mod
from fl_unlearn.flower.legacy import forgotten_classes
from legacy_project import task


def place(context: Context) -> tuple[int, int]:
    """Which part of the data this client has, of how many."""
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]) + 1


class Digits(NumPyClient):
    """Trains on its part."""

    def __init__(self, context: Context) -> None:
        self.context, self.model = context, task.new_model()

    def fit(self, parameters: task.Arrays, config: Any) -> Any:
        """One epoch."""
        task.put(self.model, parameters)
        batches = task.load(*place(self.context), exclude=forgotten_classes(config, self.context))
        task.train(self.model, batches)
        return task.get(self.model), len(batches.dataset), {}  # type: ignore[arg-type]


def client_fn(context: Context) -> Client:
    """A client."""
    return Digits(context).to_client()


mod = unlearning_mod(model=task.new_model, data=lambda context: task.load(*place(context)))
app = ClientApp(client_fn=client_fn, mods=[mod])
