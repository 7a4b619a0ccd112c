"""The model, how it is trained and evaluated, and the data of each client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import DataLoader, TensorDataset

from .data import DataBundle, Pictures, load
from .partition import assign, split_local

Loader = DataLoader[tuple[torch.Tensor, ...]]
"""Gives batches (images float32 (B, C, H, W), labels int64 (B,))."""

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, num_classes) of images and labels."""

EVALUATION_BATCH = 512


# --------------------------------------------------------------------------- model
class Net(nn.Module):
    """A small convolutional network, whose size follows the pictures'.

    ``features`` are the convolutions, ``fc`` the last hidden layer, ``head`` the classifier.

    Args:
        image_shape: Channels, height and width of a picture.
        num_classes: Number of outputs.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        small = min(height, width) < 16
        # Each convolution: its output channels, and whether the picture is halved after it.
        plan = [(8, False), (16, True)] if small else [(32, True), (64, True), (128, True)]
        hidden = 64 if small else 128
        layers: list[nn.Module] = []
        for out, halve in plan:
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
            if halve:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * height * width, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, shape (B, num_classes)."""
        # Channels last makes the convolutions a third faster on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.head(relu(self.fc(self.features(images).flatten(1))))
        return logits


def build_model(image_shape: tuple[int, int, int], num_classes: int, seed: int) -> Net:
    """A new `Net` whose weights depend on ``seed`` alone; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Net(image_shape, num_classes)


def new_model(config: Mapping[str, Any]) -> Net:
    """The model for the run's data set, with the initial weights of the run's seed."""
    data = DataSettings.from_config(config).load()
    return build_model(data.image_shape, data.num_classes, int(config["seed"]))


def round_seed(config: Mapping[str, Any], server_round: Any, partition_id: Any) -> int:
    """A seed of its own for each run, round and client, so that a run repeats exactly."""
    return (int(config["seed"]) * 100_003 + int(server_round)) * 100_003 + int(partition_id)


def train(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    device: torch.device | str,
    seed: int,
    exclude: Collection[int] = (),
) -> tuple[float, int]:
    """Train ``model`` in place by SGD.

    Args:
        model: Moved to ``device`` and left there, in training mode.
        loader: From `load_client_data`: its order of pictures is set anew from ``seed``.
        epochs: Passes over the data.
        lr: Learning rate.
        momentum: Momentum of SGD, started afresh in every call.
        weight_decay: L2 penalty.
        device: Where to compute.
        seed: Same model, data and seed, same result (on the CPU).
        exclude: Labels whose pictures are skipped.

    Returns:
        Mean cross-entropy over all passes, and the number of pictures in one pass; (0.0, 0) if there
        is nothing to train on, which leaves the model as it was.
    """
    if loader.generator is not None:
        loader.generator.manual_seed(seed)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    skipped = torch.tensor(sorted(exclude), dtype=torch.int64)
    total_loss, seen = 0.0, 0
    for _ in range(epochs):
        for images, labels in loader:
            keep = ~torch.isin(labels, skipped)
            images, labels = images[keep].to(device), labels[keep].to(device)
            if not len(labels):
                continue
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            total_loss += loss.item() * len(labels)
            seen += len(labels)
    return (total_loss / seen, seen // epochs) if seen else (0.0, 0)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, device: torch.device | str, forward: Forward | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and share of pictures classified correctly; (0.0, 0.0) without pictures.

    Weigh the result with ``len(loader.dataset)`` when it is averaged over clients.

    Args:
        model: Moved to ``device`` and left there, in evaluation mode.
        loader: Pictures and labels.
        device: Where to compute.
        forward: Called with pictures and labels for the logits; None: the model itself.
    """
    model.to(device).eval()
    total_loss, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images) if forward is None else forward(images, labels)
        total_loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return (total_loss / seen, correct / seen) if seen else (0.0, 0.0)


# --------------------------------------------------------------------------- data
@dataclass(frozen=True)
class DataSettings:
    """The run-config keys that decide what the data is and who owns which part of it."""

    dataset: str
    data_root: str
    download: bool
    max_train: int
    alpha: float
    holders: int
    held_classes: tuple[int, ...]
    seed: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DataSettings:
        """Read the settings from a Flower run config."""
        holders = int(config["holders"])
        held = str(config.get("held-classes", "") or config["forget-classes"]) if holders else ""
        return cls(
            dataset=str(config["dataset"]),
            data_root=str(config["data-root"]),
            download=bool(config["download"]),
            max_train=int(config["max-train-examples"]),
            alpha=float(config["alpha"]),
            holders=holders,
            held_classes=parse_classes(held),
            seed=int(config["seed"]),
        )

    def load(self) -> DataBundle:
        """The data set, all clients' parts together."""
        return load(
            self.dataset, self.data_root, seed=self.seed, max_train=self.max_train, download=self.download
        )


def parse_classes(text: str) -> tuple[int, ...]:
    """Labels from comma-separated text such as ``"1,9"``; empty text gives none.

    Raises:
        ValueError: If a part is not a whole number from 0 up.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"forget-classes must look like '3' or '1,9', got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def excluded(round_config: Mapping[str, Any], partition_id: str) -> set[int]:
    """Classes that the server's round configuration tells a client to leave out, as for the yardstick."""
    clients = [c.strip() for c in str(round_config.get("exclude-clients", "")).split(",") if c.strip()]
    if clients and partition_id not in clients:
        return set()
    return set(parse_classes(str(round_config.get("exclude-classes", ""))))


@lru_cache(maxsize=2)
def _owners(settings: DataSettings, num_partitions: int) -> list[np.ndarray]:
    """Who owns which training picture; kept, because every client asks for it in every round."""
    return assign(
        settings.load().train.labels,
        num_partitions,
        alpha=settings.alpha,
        seed=settings.seed,
        forget_classes=settings.held_classes,
        holders=settings.holders,
    )


def load_client_data(
    partition_id: int,
    num_partitions: int,
    config: Mapping[str, Any],
    *,
    exclude: Collection[int] = (),
    shuffle_seed: int = 0,
) -> tuple[Loader, Loader]:
    """One client's pictures: those it trains on, shuffled, and those it holds out.

    Args:
        partition_id: Which client, from 0 up.
        num_partitions: How many clients there are.
        config: The run config, with the keys that `DataSettings` reads and ``batch-size``.
        exclude: Labels to leave out of the training pictures; held-out pictures keep every label.
        shuffle_seed: Decides the order of the training pictures.

    Raises:
        ValueError: If ``partition_id`` is out of range, or the data cannot be shared as configured.
        FileNotFoundError: If the data is not where the config says.
    """
    if not 0 <= partition_id < num_partitions:
        raise ValueError(f"partition-id must lie between 0 and {num_partitions - 1}, got {partition_id}")
    settings = DataSettings.from_config(config)
    pictures = settings.load().train
    labels = pictures.labels.numpy()
    own = _owners(settings, num_partitions)[partition_id]
    train_part, held_out = split_local(own, labels, settings.seed)
    train_part = train_part[~np.isin(labels[train_part], list(exclude))]
    order = torch.Generator().manual_seed(shuffle_seed)
    return _loader(pictures, train_part, int(config["batch-size"]), order), _loader(pictures, held_out)


def load_test_data(config: Mapping[str, Any]) -> Loader:
    """The central test set, which no client owns.

    Raises:
        ValueError: If the config names an unknown data set.
        FileNotFoundError: If the data is not where the config says.
    """
    test = DataSettings.from_config(config).load().test
    return _loader(test, np.arange(len(test.labels)))


def _loader(
    pictures: Pictures,
    indices: np.ndarray,
    batch_size: int = EVALUATION_BATCH,
    order: torch.Generator | None = None,
) -> Loader:
    chosen = torch.from_numpy(indices)
    data = TensorDataset(pictures.images[chosen], pictures.labels[chosen])
    # An empty set cannot be shuffled: torch refuses to build the sampler.
    return DataLoader(data, batch_size, shuffle=order is not None and len(data) > 0, generator=order)
