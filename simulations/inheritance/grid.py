"""The shipped configs, from one small table: what the paper trained, and what two cores can do.

The paper's values are those of its code, as far as the notes on it go. Where they are silent the values are
ours: batches of 128; SGD with a learning rate of 0.1 for the LSTM and the gated CNN; t = 100 for AlexNet and
the models for texts; no weight decay for BERT.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.inheritance.config import ConfigError

FOLDER = Path(__file__).parents[1] / "paper" / "configs"
"""Where the configs lie."""

SCENARIOS = (
    *("diamond", "several", "parallel", "parallel-missing"),
    *("incremental", "incremental-30", "transfer", "depth"),
)

MODELS = {
    "resnet18": "ResNet-18",
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "vgg16_bn": "VGG-16 with batch normalisation",
    "densenet161": "DenseNet-161",
    "vit": "ViT",
    "lstm": "LSTM",
    "gcnn": "gated CNN",
    "bert": "BERT",
    "mlp": "one hidden layer",
}
PICTURES = ("resnet18", "alexnet", "vgg16", "densenet161", "vit")
TEXTS = ("lstm", "gcnn", "bert")

DATA = {
    "cifar100": ("cifar100", "CIFAR-100"),
    "tinyimagenet": ("tiny-imagenet", "TinyImageNet"),
    "imagenet": ("image-folder", "ImageNet"),
    "yahoo": ("yahoo", "Yahoo! Answers"),
    "cifar10": ("parquet", "CIFAR-10 (parquet files)"),
    "newsgroups": ("newsgroups", "20 Newsgroups"),
    "digits": ("digits", "scikit-learn's digits"),
}
"""What file names call a data set: its name in `simulations.datasets.DATASETS`, and its title."""

PAPER: dict[str, Any] = {
    "size": "full",
    "epochs": 100,
    "batch-size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight-decay": 5e-4,
    "milestones": "60,120,160,200",
    "gamma": 0.2,
    "paper-threshold": 100.0,
    "paper-divisor": 5.0,
}
PAPER_MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"paper-divisor": 1.0},
    "alexnet": {"lr": 0.01, "paper-divisor": 50.0},
    "vgg16": {"lr": 0.001, "paper-threshold": 300.0},
    "densenet161": {"paper-threshold": 300.0},
    "bert": {"optimizer": "adam", "lr": 2e-5, "weight-decay": 0.0},
}
"""What differs from `PAPER` for a model."""

SMALL: dict[str, Any] = {
    "size": "small",
    "samples": 8_000,
    "test-samples": 2_000,
    "epochs": 4,
    "first-epochs": 10,
    "batch-size": 32,
    "optimizer": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight-decay": 5e-4,
    "reference-share": 0.2,
    "calibration-samples": 50,
    "paper-threshold": 100.0,
    "paper-divisor": 5.0,
}
SMALL_SCENARIOS: dict[str, dict[str, Any]] = {
    "incremental-30": {"samples": 3_000, "test-samples": 1_000, "epochs": 1},
    "transfer": {"samples": 10_000},
    "depth": {"samples": 2_400, "test-samples": 1_000, "epochs": 1},
}
"""What differs from `SMALL` for a scenario: the more trainings, the fewer samples."""

_ADAM = {"optimizer": "adam", "weight-decay": 0.0}

SMALL_MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"paper-divisor": 1.0},
    "alexnet": {**_ADAM, "lr": 0.001, "samples": 20_000, "paper-divisor": 50.0},
    "vgg16_bn": {"paper-threshold": 300.0},
    "vit": {**_ADAM, "lr": 0.001, "samples": 6_000},
    "lstm": {**_ADAM, "lr": 0.005, "samples": 0, "test-samples": 0},
}
"""What differs from `SMALL` for a model: with so few samples SGD hardly moves those without normalisation."""

DIGITS: dict[str, Any] = {
    "samples": 0,
    "test-samples": 0,
    "epochs": 5,
    "first-epochs": 20,
    "lr": 0.05,
    "reference-share": 1.0,
    "calibration-samples": 100,
}
"""What differs from `SMALL` for the digits, of which there are few."""


@dataclass(frozen=True)
class Shipped:
    """One config.

    Attributes:
        scenario: Of `SCENARIOS`.
        data: Of `DATA`.
        model: Of `MODELS`.
        small: Whether it is for two cores.
    """

    scenario: str
    data: str
    model: str
    small: bool = False

    @property
    def name(self) -> str:
        """The file's name, without its ending."""
        return f"{self.scenario}-{self.data}-{self.model}" + ("-small" if self.small else "")

    @property
    def title(self) -> str:
        """What it is, in a line."""
        values = "small enough for two cores" if self.small else "the paper's training (arXiv 2408.08493)"
        return f"{self.scenario} on {DATA[self.data][1]} with {MODELS[self.model]}: {values}"

    @property
    def values(self) -> dict[str, Any]:
        """Its values by kebab-case key."""
        named = {"scenario": self.scenario, "dataset": DATA[self.data][0], "model": self.model}
        if not self.small:
            return {**named, **PAPER, **PAPER_MODELS.get(self.model, {})}
        own = SMALL_SCENARIOS.get(self.scenario, {}) if self.data != "digits" else DIGITS
        return {**named, **SMALL, **own, **SMALL_MODELS.get(self.model, {})}


SHIPPED = (
    *(Shipped(scenario, "cifar100", model) for scenario in SCENARIOS for model in PICTURES),
    *(Shipped("diamond", data, model) for data in ("tinyimagenet", "imagenet") for model in PICTURES),
    *(Shipped("diamond", "yahoo", model) for model in TEXTS),
    *(Shipped(scenario, "cifar10", "resnet18", small=True) for scenario in SCENARIOS),
    *(Shipped("diamond", "cifar10", model, small=True) for model in ("alexnet", "vgg16_bn", "vit")),
    Shipped("diamond", "newsgroups", "lstm", small=True),
    *(Shipped(scenario, "digits", "mlp", small=True) for scenario in SCENARIOS),
)
"""All shipped configs."""


def path_of(given: str | Path) -> Path:
    """A config's file: the one given, or the shipped one of that name.

    Raises:
        ConfigError: If it is no file, and looks like a name, of which none is shipped.
    """
    path = Path(given)
    shipped = FOLDER / f"{path.name.removesuffix('.toml')}.toml"
    if path.exists() or (not shipped.is_file() and path.suffix):
        return path
    if not shipped.is_file():
        close = difflib.get_close_matches(path.name, [s.name for s in SHIPPED], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(
            f"there is no file and no shipped config {str(given)!r}{hint}; "
            "python -m simulations.inheritance --list names them"
        )
    return shipped
