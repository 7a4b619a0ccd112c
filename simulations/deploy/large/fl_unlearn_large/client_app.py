"""The clients: each trains for a pass over its data and, if asked to, keeps its model on its disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save_file

from fl_unlearn.flower import OwnCopies, attach, forgotten_classes

from . import task

app = ClientApp()


def new_model(context: Context) -> torch.nn.Module:
    """The model that the run is about."""
    return task.new_model(int(context.run_config["megabytes"]))


def load_data(context: Context) -> tuple[task.Loader, task.Loader]:
    """This client's training and held-out samples."""
    return task.load_data(int(context.node_config["partition-id"]), int(context.run_config["examples"]))


def folder(context: Context) -> Path:
    """Where this client remembers the models that it keeps on its disk."""
    root = str(context.run_config["copies"]) or tempfile.gettempdir()
    return Path(root) / f"client-{context.node_config['partition-id']}"


copies = OwnCopies(folder)


def _copy(context: Context) -> Path | None:
    folder = str(context.run_config["copies"])
    return Path(folder) / f"client-{context.node_config['partition-id']}.safetensors" if folder else None


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's data."""
    gone = set(forgotten_classes(message, context))
    print(f"training, without the classes {sorted(gone)}", flush=True)
    model = new_model(context)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    examples = task.train(model, load_data(context)[0], gone)
    if path := _copy(context):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
        copies.keep(context, path, message)
    metrics = MetricRecord({"num-examples": examples})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


attach(app, model=new_model, data=load_data, copies=copies)
