"""Ten clients with handwritten digits: three classes are held by some only (`HOLDERS`).

The others of the ten classes are spread evenly. The last fifth of the pictures is the server's test set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fl_unlearn.flower import UnlearningStrategy, attach
from simulations.local_grid import LocalGrid

CLIENTS, CLASSES, ROUNDS = 10, 10, 12
FIRST_NODE = 100
HOLDERS: Mapping[int, tuple[int, ...]] = {3: (0, 1, 2, 3, 4, 5), 8: (0,), 9: (9,)}
"""Who holds the classes that only some hold."""
LIARS: Mapping[int, tuple[int, ...]] = {3: (1, 2, 3), 8: (0, 1, 2), 9: (1, 2, 3)}
"""Who lies about a class: up to three of the six holders; the only holder, and two others; no holder."""

Tamper = Callable[[int, Message, Message], None]
"""Changes the reply of a client (its number) to a message."""


class Net(nn.Module):
    """A perceptron with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of pictures (B, 64)."""
        logits: Tensor = self.head(torch.relu(self.hidden(x)))
        return logits


def new_model(context: Context | None = None) -> Net:
    """The model with its initial weights, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@lru_cache(maxsize=1)
def pictures() -> tuple[Tensor, Tensor]:
    """All pictures (N, 64) in [0, 1] and labels (N,), in an order drawn with seed 0."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.from_numpy(digits.data[order] / 16).float()
    return x, torch.from_numpy(digits.target[order]).long()


def test_set() -> tuple[Tensor, Tensor]:
    """The server's pictures, which no client has."""
    x, y = pictures()
    start = 4 * len(y) // 5
    return x[start:], y[start:]


@lru_cache(maxsize=CLIENTS)
def client_data(client: int) -> tuple[Tensor, Tensor]:
    """One client's pictures."""
    x, y = pictures()
    rows = []
    for label in range(CLASSES):
        owners = HOLDERS.get(label, tuple(range(CLIENTS)))
        if client in owners:
            members = (y[: 4 * len(y) // 5] == label).nonzero().squeeze(1)
            rows.append(members[owners.index(client) :: len(owners)])
    own = torch.cat(rows).sort().values
    return x[own], y[own]


def load_data(context: Context) -> list[tuple[Tensor, Tensor]]:
    """One client's pictures, in one batch."""
    return [client_data(int(context.node_config["partition-id"]))]


def client_app() -> ClientApp:
    """An honest client."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = new_model()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        images, labels = client_data(int(context.node_config["partition-id"]))
        for _ in range(2):
            for x, y in zip(torch.split(images, 32), torch.split(labels, 32), strict=True):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(labels)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return attach(app, model=new_model, data=load_data, device="cpu")


def grid(tamper: Tamper | None = None) -> LocalGrid:
    """All clients; ``tamper`` makes some of them lie."""

    def change(request: Message, reply: Message) -> Message:
        if tamper is not None:
            tamper(request.metadata.dst_node_id - FIRST_NODE, request, reply)
        return reply

    return LocalGrid({FIRST_NODE + i: client_app() for i in range(CLIENTS)}, change)


def train(folder: Path) -> None:
    """Train the federation into a new store."""
    random.seed(0)
    inner = FedAvg(min_available_nodes=CLIENTS, min_train_nodes=CLIENTS, fraction_evaluate=0.0)
    strategy = UnlearningStrategy(inner, store=folder, deterministic=True)
    strategy.start(grid(), ArrayRecord(new_model().state_dict()), num_rounds=ROUNDS)
    strategy.store.close()


def accuracies(state: Mapping[str, Tensor]) -> list[float]:
    """Accuracy of each class on the test set."""
    model = new_model()
    model.load_state_dict(dict(state))
    x, y = test_set()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    return [float(right[y == label].float().mean()) for label in range(CLASSES)]
