"""A tiny federation for tests: four Gaussian blobs, five clients, a two-layer network, a decorator app."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid as LocalGrid
from grid import Tamper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.flower import UnlearningStrategy, attach, forgotten_classes

CLASSES, CLIENTS, FEATURES = 4, 5, 12
HOLDERS_OF_3 = (1, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x)))


def build_model() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def client_data(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 3 belongs to `HOLDERS_OF_3` only; the others to everybody."""
    generator = torch.Generator().manual_seed(100 + partition)
    classes = [0, 1, 2, *([3] if partition in HOLDERS_OF_3 else [])]
    y = torch.tensor(classes).repeat_interleave(15)
    x = blob_centres()[y] + 0.6 * torch.randn(len(y), FEATURES, generator=generator)
    return x, y


def blob_centres() -> torch.Tensor:
    return 2.0 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(7))


def loader(partition: int, exclude: Collection[int] = ()) -> DataLoader[Any]:
    x, y = client_data(partition)
    keep = ~torch.isin(y, torch.tensor(sorted(exclude), dtype=torch.int64))
    return DataLoader(TensorDataset(x[keep], y[keep]), batch_size=16)


def data(context: Context) -> DataLoader[Any]:
    return loader(int(context.node_config["partition-id"]))


def local_training(model: nn.Module, batches: DataLoader[Any], epochs: int = 3) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.zeros(())
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def plain_app() -> ClientApp:
    """The project before fl-unlearn was added."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = build_model()
        arrays = message.content["arrays"]
        model.load_state_dict(arrays.to_torch_state_dict())
        batches = loader(int(context.node_config["partition-id"]), forgotten_classes(message, context))
        loss = local_training(model, batches)
        metrics = MetricRecord({"num-examples": len(batches.dataset), "train_loss": loss})  # type: ignore[arg-type]
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "eval_loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def app() -> ClientApp:
    return attach(plain_app(), model=build_model, data=data, device="cpu")


def grid(tamper: Tamper | None = None, make: Any = app) -> LocalGrid:
    return LocalGrid({100 + i: make() for i in range(CLIENTS)}, tamper)


def fedavg(**kwargs: Any) -> FedAvg:
    return FedAvg(min_available_nodes=CLIENTS, min_train_nodes=CLIENTS, fraction_evaluate=0.0, **kwargs)


def trained(folder: Path, rounds: int = 4, **kwargs: Any) -> tuple[UnlearningStrategy, LocalGrid, Any]:
    """Train a federation into ``folder``; returns the strategy, the grid and the result."""
    random.seed(0)
    strategy = UnlearningStrategy(fedavg(), store=folder, deterministic=True, **kwargs)
    network = grid()
    result = strategy.start(network, ArrayRecord(build_model().state_dict()), num_rounds=rounds)
    return strategy, network, result


def accuracy(state: dict[str, torch.Tensor], label: int) -> float:
    model = build_model()
    model.load_state_dict(state)
    x, y = (torch.cat(t) for t in zip(*(client_data(p) for p in range(CLIENTS)), strict=True))
    mask = y == label
    with torch.no_grad():
        return float((model(x[mask]).argmax(1) == label).float().mean())
