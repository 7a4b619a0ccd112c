"""One experiment as a flat TOML file says it: scenario, data, model, training, what is forgotten and how."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A config that makes no sense."""


@dataclass(frozen=True)
class Config:
    """One experiment. In files and run configs the names are kebab-case.

    Attributes:
        scenario: One of `simulations.scenarios.SCENARIOS`.
        length: How many models, where the scenario leaves it open; 0: its own.
        overlap: Share of labels that owners have in common; below 0: as the scenario has it.
        forget: Labels to forget, such as "0" or "0,1,2"; "": as the scenario has it.
        dataset: One of `simulations.datasets.DATASETS`.
        data_root: The data set's folder, where it needs one.
        samples: Training samples in all, in equal share of every class; 0: all.
        test_samples: Test samples in all; 0: all.
        image_size: Side of a picture, where the data set leaves it open; 0: its own.
        tokens: Tokens of a text.
        vocabulary: Most words of a vocabulary.
        partition: How the owners of a class share its samples: "even", "dirichlet" or "pathological".
        alpha: Label skew of "dirichlet".
        classes_per_owner: Of "pathological".
        model: One of `simulations.models.MODELS`.
        size: "full" or "small".
        weights: File of initial weights; "": random ones.
        epochs: Passes over the owner's data in each training.
        batch_size: Samples a step.
        optimizer: "sgd" or "adam".
        lr: Learning rate.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        milestones: Epochs after which the learning rate is multiplied by ``gamma``, such as "60,120".
        gamma: See ``milestones``.
        methods: Ways to forget that are put side by side, names of `methods.METHODS`.
        scope: Parameters that ours may dampen: "head", "all", or names.
        merge_rule: MFIM rule of ours.
        threshold: The t of ours; 0: chosen by calibration.
        reference_share: Share of the retained samples that ours computes its reference from.
        calibration_samples: How many samples of either kind each owner scores candidates on.
        paper_threshold: The t of the reference settings.
        paper_divisor: What the reference code divides the merged Fisher by, once per further root.
        seed: Of everything random.
    """

    scenario: str = "diamond"
    length: int = 0
    overlap: float = -1.0
    forget: str = ""
    dataset: str = "digits"
    data_root: str = ""
    samples: int = 0
    test_samples: int = 0
    image_size: int = 0
    tokens: int = 64
    vocabulary: int = 20_000
    partition: str = "even"
    alpha: float = 0.5
    classes_per_owner: int = 2
    model: str = "resnet18"
    size: str = "small"
    weights: str = ""
    epochs: int = 3
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: str = ""
    gamma: float = 0.2
    methods: str = "ours,paper"
    scope: str = "head"
    merge_rule: str = "max"
    threshold: float = 0.0
    reference_share: float = 1.0
    calibration_samples: int = 100
    paper_threshold: float = 100.0
    paper_divisor: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "tokens", "vocabulary"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{kebab(name)} must be at least 1, got {getattr(self, name)}")
        if self.optimizer not in ("sgd", "adam"):
            raise ConfigError(f"optimizer must be sgd or adam, got {self.optimizer!r}")
        self.forget_labels()
        self.milestone_epochs()

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], *, others: tuple[str, ...] = ()) -> Config:
        """Read kebab-case keys.

        Args:
            given: Key to value.
            others: Keys that may be there and are not this experiment's.

        Raises:
            ConfigError: If a key is unknown, or a value has the wrong type or makes no sense.
        """
        known = {kebab(f.name): f for f in fields(cls)}
        values = {}
        for key, value in given.items():
            if key in others:
                continue
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ConfigError(f"unknown key {key!r}{hint}; the known ones are {', '.join(known)}")
            values[known[key].name] = _typed(key, value, type(known[key].default))
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Config:
        """Read a TOML file.

        Raises:
            ConfigError: If it is missing, no TOML, or makes no sense.
        """
        try:
            return cls.from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as e:
            raise ConfigError(f"cannot read the config {path}: {e.strerror or e}") from e
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"{path} is no TOML: {e}") from e
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from e

    def to_mapping(self) -> dict[str, Any]:
        """The values by kebab-case key."""
        return {kebab(name): value for name, value in asdict(self).items()}

    def forget_labels(self) -> tuple[int, ...] | None:
        """The labels of ``forget``; None: as the scenario has it."""
        return _whole("forget", self.forget) or None

    def milestone_epochs(self) -> tuple[int, ...]:
        """The epochs of ``milestones``."""
        return _whole("milestones", self.milestones)


def kebab(name: str) -> str:
    """A field's name as a key."""
    return name.replace("_", "-")


def _whole(key: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(p) for p in text.split(",") if p.strip())
    except ValueError as e:
        raise ConfigError(f"{key} must be whole numbers with commas between them, got {text!r}") from e


def _typed(key: str, value: Any, kind: type) -> Any:
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # forget = 0
    if not fits:
        raise ConfigError(f"{key} must be of type {kind.__name__}, got {value!r}")
    return value
