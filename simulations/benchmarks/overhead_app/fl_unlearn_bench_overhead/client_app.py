"""The clients: the same ones for bare and for wrapped rounds."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_unlearn.flower import attach
from simulations.quickstart.fl_unlearn_quickstart import client_app as quickstart

from . import workloads

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train as the workload does."""
    if context.run_config["workload"] == "digits":
        reply: Message = quickstart.train(message, context)
        return reply
    return workloads.train_resnet(message, context)


def new_model(context: Context) -> torch.nn.Module:
    """The workload's model."""
    return workloads.new_model(context.run_config)


def load_data(context: Context) -> Any:
    """The client's batches; `attach` wants to know them, though nothing is forgotten here."""
    if context.run_config["workload"] == "digits":
        return quickstart.load_data(context)
    return workloads.noise(context.run_config, int(context.node_config["partition-id"]))


attach(app, model=new_model, data=load_data)
