"""The clients: each round of training and each task is a task of `strategies`, the same as in one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import strategies  # noqa: F401 (clients know the tasks of all strategies)
from fl_unlearn.flower import attach, records
from simulations.compare.clients import build_model, make_client
from simulations.compare.flower import respond
from simulations.compare.messages import ACTION
from simulations.compare.run_config import read_setting
from simulations.compare.setting import SettingError
from strategies import tasks
from strategies.client import Client
from strategies.training import train_settings

torch.set_num_threads(1)  # the same result as in one process, however many cores a client gets

app = ClientApp()

_client = cache(make_client)
"""Kept, because every round and task asks for it; a process serves one run."""


def client_of(context: Context) -> Client:
    """The client that a node is.

    Raises:
        SettingError: If there are more or fewer nodes than the setting has clients.
    """
    setting, nodes = read_setting(context.run_config), int(context.node_config["num-partitions"])
    if nodes != setting.clients:
        raise SettingError(
            f"the run has {nodes} nodes, the setting {setting.clients} clients; give flwr run "
            f"--federation-config 'num-supernodes={setting.clients}', or clients={nodes}"
        )
    return _client(setting, int(context.run_config["seed"]), int(context.node_config["partition-id"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of training, as the task ``train`` does it."""
    client, config = client_of(context), message.content.config_records["config"]
    training = read_setting(context.run_config).training(int(context.run_config["seed"]))
    settings = train_settings(training, "train", int(str(config["server-round"])))
    model = records.to_state(message.content.array_records["arrays"])
    answer = tasks.run("train", client, {"model": model}, settings)
    metrics = MetricRecord(
        {"num-examples": answer.samples, "train-seconds": answer.seconds, **answer.numbers}
    )
    arrays = records.to_arrays(answer.tensors["model"])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.query(ACTION)
def run_task(message: Message, context: Context) -> Message:
    """What a strategy, or a measurement, asks of a client."""
    return respond(message, context, client_of)


def new_model(context: Context) -> torch.nn.Module:
    """The project's model."""
    return build_model(read_setting(context.run_config), int(context.run_config["seed"]))


def load_data(context: Context) -> Any:
    """This client's batches of training and of held-out data."""
    client = client_of(context)
    return client.batches("train"), client.batches("held-out")


attach(app, model=new_model, data=load_data)
