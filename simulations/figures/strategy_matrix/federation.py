"""A small federation in one process, as a project of today's API and as a legacy one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Status
from torch import nn

from fl_unlearn.flower import attach, forgotten_classes, legacy, unlearning_mod
from simulations.local_grid import LocalGrid

Data = tuple[torch.Tensor, torch.Tensor]
NODE = 100
"""Node id of the first client."""


@dataclass(frozen=True)
class Problem:
    """What is learned, by whom, and what is forgotten.

    Attributes:
        model: Builds the model, the same at every call.
        clients: Training data of each client: inputs, and labels of shape (samples,).
        test: Data that no client has.
        forget: The class to forget; clients all hold some of it.
        epochs: Local epochs a round.
        lr: Local learning rate (SGD).
        batch_size: Samples in a batch.
    """

    model: Callable[[], nn.Module]
    clients: Sequence[Data]
    test: Data
    forget: int
    epochs: int = 2
    lr: float = 0.1
    batch_size: int = 16

    def batches(self, client: int, exclude: Collection[int] = ()) -> list[Data]:
        """A client's training data, without some classes."""
        x, y = self.clients[client]
        keep = ~torch.isin(y, torch.tensor(sorted(exclude), dtype=torch.int64))
        x, y = x[keep], y[keep]
        starts = range(0, len(y), self.batch_size)
        return [(x[i : i + self.batch_size], y[i : i + self.batch_size]) for i in starts]

    def examples(self, client: int, exclude: Collection[int] = ()) -> int:
        """How many samples those are."""
        return sum(len(y) for _, y in self.batches(client, exclude))

    def train(self, model: nn.Module, client: int, exclude: Collection[int], mu: float = 0.0) -> float:
        """Train in place; returns the last loss. ``mu``: FedProx's proximal term."""
        parameters = list(model.parameters())
        start = [p.detach().clone() for p in parameters]
        loss, batches = torch.zeros(()), self.batches(client, exclude)
        for _ in range(self.epochs):
            for x, y in batches:
                loss = nn.functional.cross_entropy(model(x), y)
                if mu:
                    pairs = zip(parameters, start, strict=True)
                    loss = loss + mu / 2 * torch.stack([(p - p0).square().sum() for p, p0 in pairs]).sum()
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():  # by hand: making an optimiser of torch's takes longer than these steps
                    for p, gradient in zip(parameters, gradients, strict=True):
                        p.sub_(gradient, alpha=self.lr)
        return float(loss.detach())

    def accuracies(self, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[float, float]:
        """Test accuracy of a model on the class to forget, and on all others."""
        model = self.model()
        own = model.state_dict()
        model.load_state_dict(dict(zip(own, map(torch.as_tensor, arrays), strict=True)))
        x, y = self.test
        with torch.no_grad():
            right = model.eval()(x).argmax(1) == y
        named = y == self.forget
        return float(right[named].float().mean()), float(right[~named].float().mean())


def partition(context: Context) -> int:
    """Which client this is."""
    return int(context.node_config["partition-id"])


def grid(problem: Problem, make: Callable[[Problem], ClientApp]) -> LocalGrid:
    """All clients of a problem, each with an app of its own."""
    return LocalGrid({NODE + i: make(problem) for i in range(len(problem.clients))})


# --------------------------------------------------------------------------- today's API
def decorator_app(problem: Problem, mods: Sequence[Any] = (), *, trees: bool = False) -> ClientApp:
    """A ClientApp of decorated functions; ``trees``: it trains boosters, and cannot forget."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        client, exclude = partition(context), forgotten_classes(message, context)
        arrays = message.content.array_records["arrays"]
        examples = problem.examples(client, exclude)
        if trees:
            grown = ArrayRecord([np.frombuffer(booster(client), np.uint8)])
            metrics = MetricRecord({"num-examples": examples})
            return Message(RecordDict({"arrays": grown, "metrics": metrics}), reply_to=message)
        model = problem.model()
        model.load_state_dict(arrays.to_torch_state_dict())
        mu = float(str(message.content.config_records["config"].get("proximal-mu", 0.0)))
        loss = problem.train(model, client, exclude, mu)
        metrics = MetricRecord({"num-examples": examples, "train_loss": loss})
        trained = ArrayRecord(model.state_dict())
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        values = message.content.array_records["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": 1, "eval_loss": float(values[0].astype(np.float64).sum())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    if trees:
        return app
    return attach(app, model=problem.model, data=lambda c: problem.batches(partition(c)), device="cpu")


def booster(client: int) -> bytes:
    """One tree in the part of XGBoost's JSON that Flower's strategies read; no library is needed for it."""
    tree = b'{"id": 0, "split_conditions": [%d.5]}' % client
    return (
        b'{"learner": {"gradient_booster": {"model": {"gbtree_model_param": '
        b'{"num_trees": "1", "num_parallel_tree": "1"}, "iteration_indptr": [0, 1], "tree_info": [0], '
        b'"trees": [' + tree + b"]}}}}"
    )


# --------------------------------------------------------------------------- the legacy API
class LegacyClient(NumPyClient):
    """A client of ``client_fn``."""

    def __init__(self, problem: Problem, client: int) -> None:
        self.problem, self.client = problem, client
        self.model = problem.model()

    def get_parameters(self, config: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        """The model's values, in their order."""
        return [v.numpy() for v in self.model.state_dict().values()]

    def set_parameters(self, parameters: Sequence[np.ndarray[Any, Any]]) -> None:
        """Take over values."""
        own = self.model.state_dict()
        self.model.load_state_dict(dict(zip(own, map(torch.tensor, parameters), strict=True)))

    def fit(self, parameters: Sequence[np.ndarray[Any, Any]], config: Mapping[str, Any]) -> Any:
        """Train without what was forgotten."""
        exclude = legacy.forgotten_classes(config, self.client)
        self.set_parameters(parameters)
        loss = self.problem.train(self.model, self.client, exclude, float(config.get("proximal_mu", 0.0)))
        examples = self.problem.examples(self.client, exclude)
        return self.get_parameters({}), examples, {"train_loss": loss, "dpfedavg_norm_bit": True}

    def evaluate(self, parameters: Sequence[np.ndarray[Any, Any]], config: Mapping[str, Any]) -> Any:
        """A number that depends on every bit of the first tensor."""
        return float(np.asarray(parameters[0], np.float64).sum()), 1, {}


class LegacyTrees(Client):
    """A client of ``client_fn`` that grows trees."""

    def __init__(self, client: int) -> None:
        self.client = client

    def fit(self, ins: FitIns) -> FitRes:
        """One tree."""
        grown = Parameters(tensor_type="", tensors=[booster(self.client)])
        return FitRes(Status(Code.OK, ""), grown, 10, {})

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        """The size of the model."""
        return EvaluateRes(Status(Code.OK, ""), float(sum(map(len, ins.parameters.tensors))), 1, {})


class LegacyRaw(LegacyTrees):
    """A client that sends values without their shape, as Flower's Android clients do."""

    def __init__(self, problem: Problem, client: int) -> None:
        super().__init__(client)
        self.problem = problem

    def fit(self, ins: FitIns) -> FitRes:
        """Values of the model."""
        model = self.problem.model()
        self.problem.train(model, self.client, ())
        values = [v.numpy().tobytes() for v in model.state_dict().values()]
        return FitRes(Status(Code.OK, ""), Parameters(values, "numpy.nda"), 10, {})


def legacy_app(problem: Problem, mods: Sequence[Any] = (), kind: str = "model") -> ClientApp:
    """A ClientApp of ``client_fn``; its clients grow trees, or send raw values, where ``kind`` says so."""

    def client_fn(context: Context) -> Client:
        client = partition(context)
        if kind == "trees":
            return LegacyTrees(client)
        return LegacyRaw(problem, client) if kind == "raw" else LegacyClient(problem, client).to_client()

    mod = unlearning_mod(model=problem.model, data=lambda c: problem.batches(partition(c)), device="cpu")
    return ClientApp(client_fn=client_fn, mods=[mod, *mods])
