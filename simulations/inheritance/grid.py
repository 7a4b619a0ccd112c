"""The shipped configs, from one small table: what the paper trained, and what two cores can do.

Where the notes on the paper's code are silent (batch size; the learning rate and threshold of models that they
do not name) the values are ours: batches of 128, SGD with 0.1, t = 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "paper" / "configs"
"""Where the configs lie."""

SCENARIOS = (
    *("diamond", "several", "parallel", "parallel-missing"),
    *("incremental", "incremental-30", "transfer", "depth"),
)
PICTURE_MODELS = ("resnet18", "alexnet", "vgg16", "densenet161", "vit")
TEXT_MODELS = ("lstm", "gcnn", "bert")

DATA: dict[str, tuple[str, str]] = {
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
"""What the paper's code does otherwise for a model."""

SMALL: dict[str, Any] = {
    "size": "small",
    "samples": 6_000,
    "test-samples": 2_000,
    "epochs": 3,
    "first-epochs": 8,
    "batch-size": 32,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight-decay": 5e-4,
    "paper-threshold": 100.0,
    "paper-divisor": 5.0,
}
DIGITS: dict[str, Any] = {**SMALL, "samples": 0, "test-samples": 0, "epochs": 10, "first-epochs": 20}
