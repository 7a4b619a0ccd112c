"""The clients: train and evaluate as in any Flower project. What fl-unlearn adds is marked."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_unlearn.fisher.ledger import FisherLedger  # <- fl-unlearn, optional: a ledger
from fl_unlearn.flower import attach, forgotten_classes  # <- fl-unlearn

from . import task

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

app = ClientApp()


def new_model(context: Context) -> torch.nn.Module:
    """The project's model, with its initial weights."""
    return task.new_model(context.run_config)


def load_data(context: Context) -> tuple[task.Loader, task.Loader]:
    """This client's training and held-out data."""
    node = context.node_config
    return task.load_client_data(int(node["partition-id"]), int(node["num-partitions"]), context.run_config)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's data."""
    config, round_config = context.run_config, message.content.config_records["config"]
    model = new_model(context)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    batches, _ = load_data(context)
    exclude = task.excluded(round_config, str(context.node_config["partition-id"]))
    exclude |= set(forgotten_classes(message, context))  # <- fl-unlearn: what was forgotten stays out

    started = time.perf_counter()
    loss, examples = task.train(
        model,
        batches,
        epochs=int(config["local-epochs"]),
        lr=float(config["lr"]),
        momentum=float(config["momentum"]),
        weight_decay=float(config["weight-decay"]),
        device=DEVICE,
        seed=task.round_seed(config, round_config["server-round"], context.node_config["partition-id"]),
        exclude=exclude,
    )
    metrics = MetricRecord(
        {"train-loss": loss, "num-examples": examples, "train-seconds": time.perf_counter() - started}
    )
    content = RecordDict({"arrays": ArrayRecord(model.cpu().state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's held-out data."""
    model = new_model(context)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    training, held_out = load_data(context)
    loss, accuracy = task.evaluate(model, held_out, DEVICE)
    examples = sum(len(labels) for _, labels in held_out)
    metrics = MetricRecord({"eval-loss": loss, "eval-accuracy": accuracy, "num-examples": examples})
    if context.run_config["ledger"]:
        gone = forgotten_classes(message, context)
        metrics["fit-loss"], metrics["fit-accuracy"] = evaluate_and_note(model, training, context, gone)
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


# --------------------------------------------------------------------------- fl-unlearn, optional: a ledger
def open_ledger(context: Context) -> FisherLedger | None:
    """This client's ledger of its training data, if the run keeps any."""
    if not context.run_config["ledger"]:
        return None
    name, clients = str(context.node_config["partition-id"]), context.node_config["num-partitions"]
    settings = asdict(task.DataSettings.from_config(context.run_config))
    data_key = json.dumps([settings, clients, name], sort_keys=True)
    return FisherLedger(Path(str(context.run_config["ledger"])).expanduser() / f"client-{name}", data_key)


def evaluate_and_note(
    model: torch.nn.Module, training: task.Loader, context: Context, gone: tuple[int, ...]
) -> tuple[float, float]:
    """How the model fits this client's training data; its Fisher is noted on the way."""
    ledger, config = open_ledger(context), context.run_config
    assert ledger is not None
    kind, scope = str(config["fisher-kind"]), str(config["fisher-scope"])
    with ledger.collect(model.to(DEVICE).eval(), kind=kind, scopes=[scope], without=gone) as forward:
        return task.evaluate(model, training, DEVICE, forward)


attach(app, model=new_model, data=load_data, ledger=open_ledger)  # <- fl-unlearn
