"""What a config makes: the scenario, the data and its owners, the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_unlearn.types import ForgetRequest
from simulations import datasets, models, scenarios
from simulations.datasets.bundle import Bundle
from simulations.inheritance.config import Config
from simulations.models.trainable import head_of
from simulations.scenarios.contract import Scenario
from simulations.scenarios.shares import held_out, share
from strategies.client import Client
from strategies.contract import State
from strategies.training import state_of


@dataclass(frozen=True)
class World:
    """One experiment's world; made anew, it is the same.

    Attributes:
        config: The config.
    """

    config: Config

    @cached_property
    def bundle(self) -> Bundle:
        """The data set."""
        c = self.config
        return datasets.load(
            c.dataset,
            c.data_root,
            max_train=c.samples,
            max_test=c.test_samples,
            image_size=c.image_size,
            tokens=c.tokens,
            vocabulary=c.vocabulary,
            download=c.download,
        )

    @cached_property
    def scenario(self) -> Scenario:
        """The graph, and who owns which labels."""
        c = self.config
        return scenarios.build(
            c.scenario,
            self.bundle.num_classes,
            forget=c.forget_labels(),
            length=c.length or None,
            overlap=c.overlap if c.overlap >= 0 else None,
        )

    @property
    def request(self) -> ForgetRequest:
        """What is to be forgotten."""
        return ForgetRequest(self.scenario.forget)

    def build_model(self) -> nn.Module:
        """The model, with weights of torch's random state."""
        c, data = self.config, self.bundle
        return models.build(
            c.model, data.inputs, data.num_classes, size=c.size, weights=Path(c.weights) if c.weights else ""
        )

    @property
    def device(self) -> torch.device:
        """Where owners compute."""
        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.config.device)

    @cached_property
    def head(self) -> str:
        """Name of the model's head."""
        return head_of(self.build_model(), self.bundle.inputs)

    def initial_state(self) -> State:
        """What every model without parents starts from: one draw, so that averages make sense."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            return state_of(self.build_model())

    def shares(self, part: str) -> dict[str, np.ndarray]:
        """Owner to the positions of its samples in the training or the test part."""
        c, labels = self.config, self.bundle.train.labels.numpy()
        train = share(
            self.scenario,
            labels,
            partition=c.partition,
            alpha=c.alpha,
            classes_per_owner=c.classes_per_owner,
            seed=c.seed,
        )
        if part == "train":
            return train
        return held_out(train, labels, self.bundle.test.labels.numpy(), seed=c.seed)

    @cached_property
    def clients(self) -> dict[str, Client]:
        """Owner to its side of the work."""
        train, test = self.shares("train"), self.shares("test")
        # Data sets are often sorted by class, and owners score candidates on their first samples.
        mixed = np.random.default_rng(self.config.seed)
        return {
            owner: Client(
                owner,
                index,
                self.build_model,
                self.bundle.train.rows(mixed.permutation(train[owner])),
                self.bundle.test.rows(test[owner]),
                self.request,
                device=self.device,
            )
            for index, owner in enumerate(self.scenario.owners)
        }


@lru_cache(maxsize=4)
def world_of(config: Config) -> World:
    """The world of a config, kept."""
    return World(config)
