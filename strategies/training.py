"""FedAvg, for strategies that train: rounds over clients, and what a client does in one.

Training and retraining go through here too, so that retraining differs from training by its data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_unlearn import model_graph
from fl_unlearn.batches import filled, to_device
from fl_unlearn.types import LineageError, StateDict
from strategies.client import Client
from strategies.contract import Federation, State
from strategies.errors import StrategyError
from strategies.history import Training
from strategies.tasks import Answer, Settings, Tensors, task

Loss = Callable[[nn.Module, Any, Tensor], Tensor]
"""The loss of a batch: of a model, its inputs and its labels."""


def supervised(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(x), y)


def fit(
    model: nn.Module,
    batches: Any,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int = 1,
    loss: Loss = supervised,
    clip: float | None = None,
    after_step: Callable[[int], bool] | None = None,
    statistics: bool = True,
) -> float:
    """Train ``model`` in place, in training mode; it is in eval mode afterwards.

    Args:
        model: The model, on its device.
        batches: Gone through once an epoch; empty ones are skipped.
        optimizer: Of the parameters that are to change.
        epochs: Passes over the data.
        loss: What is minimised.
        clip: Largest norm of the gradient, all parameters together; None: any.
        after_step: Called with the number of steps so far; True ends the training.
        statistics: Whether batch normalisation goes on averaging; if not, it stays in eval mode.

    Returns:
        Mean loss a sample; 0.0 without samples.
    """
    device = next(model.parameters()).device
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total, seen, steps = 0.0, 0, 0
    model.train()
    if not statistics:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    for _ in range(epochs):
        for x, y in filled(batches):
            optimizer.zero_grad()
            value = loss(model, to_device(x, device), y.to(device))
            value.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            total, seen, steps = total + value.item() * len(y), seen + len(y), steps + 1
            if after_step is not None and after_step(steps):
                model.eval()
                return total / seen
    model.eval()
    return total / seen if seen else 0.0


def state_of(model: nn.Module) -> State:
    """A copy of a model's values, on the CPU."""
    return {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}


@task("train")
def train(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Local training by SGD on one part of the client's data.

    Tensors: ``model``. Settings: ``part``, ``epochs``, ``batch-size``, ``lr``, ``momentum``,
    ``weight-decay``, ``seed``, ``round``. Answers with the trained ``model``.
    """
    s: Any = settings
    count = client.count(s["part"])
    if not count:
        return Answer(0)
    model = client.model(tensors["model"])
    seed = seed_of(s["seed"], s["round"], client.index)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=s["lr"], momentum=s["momentum"], weight_decay=s["weight-decay"]
    )
    loss = fit(
        model,
        client.batches(s["part"], size=s["batch-size"], seed=seed),
        optimizer,
        epochs=s["epochs"],
    )
    return Answer(count, {"model": state_of(model)}, {"loss": loss})


def train_settings(training: Training, part: str, number: int, **changes: Any) -> dict[str, Any]:
    """The settings of the task ``train`` for one round."""
    plain = {
        "part": part,
        "epochs": training.epochs,
        "batch-size": training.batch_size,
        "lr": training.lr,
        "momentum": training.momentum,
        "weight-decay": training.weight_decay,
        "seed": training.seed,
        "round": number,
    }
    return {**plain, **{name.replace("_", "-"): value for name, value in changes.items()}}


def fedavg(
    federation: Federation,
    state: StateDict,
    training: Training,
    *,
    rounds: int,
    part: str = "retained",
    clients: Sequence[str] | None = None,
    first: int = 1,
    on_round: Callable[[int, Mapping[str, Answer], State], None] | None = None,
    **changes: Any,
) -> State:
    """Rounds of FedAvg (McMahan et al. 2017): local SGD, then the mean weighted by samples.

    Args:
        federation: The clients.
        state: The model to start from.
        training: How clients train.
        rounds: How many rounds.
        part: What clients train on.
        clients: Who trains; None: all. Those without samples of the part do not count.
        first: Number of the first round; decides the order of samples.
        on_round: Called with a round's number, its answers and its aggregate.
        **changes: Settings of the task ``train`` that differ from ``training``, such as ``lr``.

    Raises:
        StrategyError: If no client has a sample to train on, or a value is no longer finite.
    """
    current = dict(state)
    for number in range(first, first + rounds):
        settings = train_settings(training, part, number, **changes)
        answers = federation.ask("train", {"model": current}, settings, clients)
        current = average({c: (a.tensors["model"], a.samples) for c, a in answers.items() if a.samples})
        if on_round:
            on_round(number, answers, current)
    return current


def average(models: Mapping[str, tuple[StateDict, float]]) -> State:
    """The mean of models, weighted, as `fl_unlearn.model_graph.average`.

    Args:
        models: Client to its model and weight, > 0.

    Raises:
        StrategyError: If there is none, their tensors differ, or a value is not finite.
    """
    if not models:
        raise StrategyError("no client had a sample to train on, so there is no model to average")
    try:
        return model_graph.average(models.values())
    except LineageError as e:
        bad = [c for c, (state, _) in models.items() if not all(t.isfinite().all() for t in state.values())]
        raise StrategyError(f"at {', '.join(bad) or 'the server'}: {e}") from e


def seed_of(seed: int, number: int, index: int) -> int:
    """A seed of its own for each run, round and client, so that a run repeats exactly."""
    return (seed * 100_003 + number) * 100_003 + index
