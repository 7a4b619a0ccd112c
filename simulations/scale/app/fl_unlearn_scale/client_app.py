"""The clients: train and forget."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_unlearn.flower import attach, forgotten_classes

from . import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's pictures."""
    model = new_model(context)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    examples = task.train(model, load_data(context), forgotten_classes(message, context))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


def new_model(context: Context) -> torch.nn.Module:
    """The project's model."""
    return task.new_model(context.run_config)


def load_data(context: Context) -> task.Loader:
    """This client's pictures."""
    return task.client_data(int(context.node_config["partition-id"]), context.run_config)


attach(app, model=new_model, data=load_data, device="cpu")
