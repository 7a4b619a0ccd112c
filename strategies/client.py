"""One client as a strategy's tasks see it: its data, parted by the request, and the project's model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from fl_unlearn.batches import unpack
from fl_unlearn.forget_set import forget_mask
from fl_unlearn.types import ForgetRequest, StateDict

Part = Literal["train", "forget", "retained", "held-out", "triggered"]
"""All training samples; those to forget; those to keep; samples that no client trained on; held-out samples
with a planted trigger, under the label that the trigger is to cause."""

PARTS: tuple[Part, ...] = get_args(Part)

LARGE = 512
"""Batch size where nothing is learned."""


class Client:
    """One client.

    Args:
        name: Its lasting name.
        index: Its number, from 0 up.
        build: Builds the project's model, with random initial weights.
        train: Its training samples: a map-style data set of (input, label).
        held_out: Samples of its own that nobody trained on, in the same form.
        request: What is to be forgotten; None: nothing.
        triggered: The part of that name; None: nothing was planted.
        device: Where to compute.
    """

    def __init__(
        self,
        name: str,
        index: int,
        build: Callable[[], nn.Module],
        train: Dataset[Any],
        held_out: Dataset[Any],
        request: ForgetRequest | None = None,
        triggered: Dataset[Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.index, self.request, self.device = name, index, request, torch.device(device)
        self._build, self._train, self._held_out = build, train, held_out
        self._triggered = triggered if triggered is not None else _rows(held_out, torch.zeros(0).long())

    def model(self, state: StateDict) -> nn.Module:
        """The project's model with these values, in eval mode, on the client's device."""
        model = self._build()
        model.load_state_dict(dict(state))
        return model.to(self.device).eval()

    def fresh(self, seed: int) -> nn.Module:
        """The project's model with random weights of this seed, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self._build()
        return model.to(self.device).eval()

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all training samples, int64, shape (N,)."""
        return labels_of(self._train)

    @cached_property
    def _forgets(self) -> Tensor:
        if self.request is None:
            return torch.zeros(len(self.labels), dtype=torch.bool)
        return forget_mask(self.request, self.name, self.labels)

    def dataset(self, part: Part) -> Dataset[Any]:
        """The samples of one part."""
        if part == "held-out":
            return self._held_out
        if part == "triggered":
            return self._triggered
        if part == "train":
            return self._train
        wanted = self._forgets if part == "forget" else ~self._forgets
        return _rows(self._train, wanted.nonzero().squeeze(1))

    def count(self, part: Part) -> int:
        """How many samples a part has."""
        return size_of(self.dataset(part))

    def batches(self, part: Part, *, size: int = LARGE, seed: int | None = None) -> DataLoader[Any]:
        """Batches (inputs, labels) of one part.

        Args:
            part: Which samples.
            size: Samples a batch.
            seed: Shuffles, differently in every pass, the same for the same seed; None: the data's order.
        """
        return batches_of(self.dataset(part), size=size, seed=seed)


def batches_of(data: Dataset[Any], *, size: int = LARGE, seed: int | None = None) -> DataLoader[Any]:
    """Batches of any data set, as `Client.batches` gives them."""
    order = None if seed is None else torch.Generator().manual_seed(seed)
    # An empty set cannot be shuffled: torch refuses to build the sampler.
    return DataLoader(data, size, shuffle=order is not None and size_of(data) > 0, generator=order)


def size_of(data: Dataset[Any]) -> int:
    """How many samples a data set has."""
    return len(data)  # type: ignore[arg-type]


def labels_of(data: Dataset[Any]) -> Tensor:
    """Labels of a data set's samples, int64, shape (N,)."""
    tensors = getattr(data, "tensors", None)
    if tensors is not None:
        return unpack(tuple(tensors))[1]
    parts = [unpack(batch)[1] for batch in DataLoader(data, LARGE)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _rows(data: Dataset[Any], rows: Tensor) -> Dataset[Any]:
    tensors = getattr(data, "tensors", None)
    if tensors is not None:  # a row at a time would take longer than a small model's step
        return torch.utils.data.TensorDataset(*(t[rows] for t in tensors))
    return Subset(data, rows.tolist())
