"""What owners do: train one model of the graph, and answer as `fl_unlearn.graph_unlearning.Owners`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.fisher import FisherSums
from fl_unlearn.plan import PlannedModel
from fl_unlearn.types import REST, ClassScores, ForgetRequest, StateDict, UnlearnSettings
from simulations.inheritance.config import Config
from simulations.models.trainable import trains_only
from strategies.client import Client
from strategies.contract import Federation
from strategies.fisher import ask_fisher
from strategies.fiun_tasks import ask_scores
from strategies.tasks import Answer, Settings, Tensors, task
from strategies.training import fit, state_of


@task("inheritance.train")
def train(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Train one model on one part of the owner's data.

    Tensors: ``model``. Settings: ``part``, ``trains``, ``epochs``, ``batch-size``, ``optimizer``, ``lr``,
    ``momentum``, ``weight-decay``, ``milestones``, ``gamma``, ``seed``. Answers with the ``model``,
    unchanged where the part has no sample, and the mean ``loss`` of the last pass; none where it is no longer
    finite, which ends the training.
    """
    s: Any = settings
    count = client.count(s["part"])
    if not count:
        return Answer(0, {"model": tensors["model"]})
    model = client.model(tensors["model"])
    frozen = trains_only(model, s["trains"])
    optimizer = _optimizer([p for p in model.parameters() if p.requires_grad], s)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(s["milestones"]), s["gamma"])
    batches, loss = client.batches(s["part"], size=s["batch-size"], seed=s["seed"]), 0.0
    for _ in range(s["epochs"]):
        # Where only the head learns, the features must stay what they were: their statistics too.
        loss = fit(model, _of_several(batches), optimizer, statistics=not frozen)
        schedule.step()
        if not math.isfinite(loss):
            return Answer(count, {"model": state_of(model)})
    return Answer(count, {"model": state_of(model)}, {"loss": loss})


def _of_several(batches: Iterable[Any]) -> Iterator[Any]:
    """Without a last batch of a single sample: batch normalisation cannot be trained on one.

    Batches are shuffled, so it is another sample at every pass.
    """
    return (batch for batch in batches if len(batch[1]) > 1)


def _optimizer(parameters: list[nn.Parameter], s: Any) -> torch.optim.Optimizer:
    if s["optimizer"] == "adam":
        return torch.optim.Adam(parameters, lr=s["lr"], weight_decay=s["weight-decay"])
    return torch.optim.SGD(parameters, lr=s["lr"], momentum=s["momentum"], weight_decay=s["weight-decay"])


def train_settings(
    config: Config, model: PlannedModel, part: str, position: int, epochs: int
) -> dict[str, Any]:
    """The settings of the task ``inheritance.train`` for one model.

    Args:
        config: The experiment.
        model: The model.
        part: What its owner trains on; see `strategies.client.Part`.
        position: The model's place in the plan; decides the order of samples.
        epochs: How often it goes over the data.
    """
    return {
        "part": part,
        "trains": model.trains,
        "epochs": epochs,
        "batch-size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.lr,
        "momentum": config.momentum,
        "weight-decay": config.weight_decay,
        "milestones": list(config.milestone_epochs()),
        "gamma": config.gamma,
        "seed": config.seed * 100_003 + position,
    }


class FederationOwners:
    """The clients of a `Federation` as owners of a graph's data; see `fl_unlearn.graph_unlearning.Owners`.

    Args:
        federation: The clients; they know the request.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def counts(self, request: ForgetRequest) -> dict[str, dict[int, int]]:
        """Owner to its number of samples of each requested class, and of all that is kept."""
        answers = self._federation.ask("inheritance.counts")
        return {o: {int(g): int(n) for g, n in a.numbers.items()} for o, a in answers.items()}

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> dict[str, FisherSums]:
        """Owner to its Fisher sums of a model."""
        share = {} if settings.reference_share is None else {"reference-share": settings.reference_share}
        return ask_fisher(
            self._federation,
            state,
            kind=settings.fisher_kind,
            scope=settings.fisher_scope,
            head=settings.head,
            clients=owners,
            others=share,
        )

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> Mapping[str, Sequence[ClassScores]]:
        """Owner to its scores of a model: as it is, then under each candidate."""
        found = ask_scores(self._federation, [state], base, settings, ["train"], owners)["train"]
        return {owner: rows[0] for owner, rows in found.items()}


@task("inheritance.counts")
def counts(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """How many samples of each requested class the owner has, and of all that is kept."""
    assert client.request is not None
    own = {str(c): float((client.labels == c).sum()) for c in client.request.classes}
    rest = len(client.labels) - sum(own.values())
    return Answer(len(client.labels), numbers={**own, str(REST): rest})
