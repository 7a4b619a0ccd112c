"""One experiment as a flat TOML file says it: scenario, data, model, training, what is forgotten and how."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A config that makes no sense."""


OPTIMIZERS = ("sgd", "adam")
SIZES = ("full", "small")


@dataclass(frozen=True)
class Config:
    """One experiment. In files and run configs the names are kebab-case.

    Attributes:
        scenario: One of `simulations.scenarios.SCENARIOS`.
        length: How many models, where the scenario leaves it open; 0: its own.
        overlap: Share of labels that owners have in common, 0 to 1; -1: as the scenario has it.
        forget: Labels to forget, such as "0" or "0,1,2"; "": as the scenario has it.
        dataset: One of `simulations.datasets.DATASETS`.
        data_root: The data set's folder, where it needs one.
        download: Whether a data set that is not in its folder may be fetched.
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
        first_epochs: The same for models that start from new weights, those whose ancestors nobody trained;
            0: as ``epochs``.
        batch_size: Samples a step, 2 or more.
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
        device: Where owners compute: "cpu", "cuda"..., or "auto": a GPU if there is one.
        seed: Of everything random.
    """

    scenario: str = "diamond"
    length: int = 0
    overlap: float = -1.0
    forget: str = ""
    dataset: str = "digits"
    data_root: str = ""
    download: bool = False
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
    first_epochs: int = 0
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
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*self._out_of_range(), *self._unknown()]
        for read in (self.forget_labels, self.milestone_epochs):
            try:
                read()
            except ConfigError as e:
                problems.append(str(e))
        if problems:
            raise ConfigError("; ".join(problems))

    def _out_of_range(self) -> Iterable[str]:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                upper = f" and at most {high:g}" if high < math.inf else ""
                yield f"{kebab(name)} must be at least {low:g}{upper}, got {value:g}"
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                yield f"{kebab(name)} must be a number above 0, got {value:g}"
        if not 0 < self.reference_share <= 1:
            yield f"reference-share must be above 0 and at most 1, got {self.reference_share:g}"
        if self.overlap != -1 and not 0 <= self.overlap <= 1:
            yield f"overlap must be between 0 and 1, or -1 for the scenario's own, got {self.overlap:g}"

    def _unknown(self) -> Iterable[str]:
        for name, known in (("optimizer", OPTIMIZERS), ("size", SIZES)):
            if getattr(self, name) not in known:
                yield unknown(name, getattr(self, name), known)

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
        mine = {key: value for key, value in given.items() if key not in others}
        if strange := [unknown("key", key, known) for key in mine if key not in known]:
            raise ConfigError("; ".join(strange))
        return cls(**{known[key].name: _typed(key, v, type(known[key].default)) for key, v in mine.items()})

    @classmethod
    def from_file(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Config:
        """Read a TOML file.

        Args:
            path: The file.
            changes: Values by kebab-case key that go before the file's.

        Raises:
            ConfigError: If it is missing, no TOML, or makes no sense.
        """
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls.from_mapping({**given, **(changes or {})})
        except OSError as e:
            raise ConfigError(f"cannot read the config {path}: {e.strerror or e}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
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

    def method_names(self) -> tuple[str, ...]:
        """The names in ``methods``, without repeats."""
        return tuple(dict.fromkeys(p.strip() for p in self.methods.split(",") if p.strip()))


_RANGES: tuple[tuple[str, float, float], ...] = (
    *((name, 1, math.inf) for name in ("epochs", "tokens", "vocabulary", "classes_per_owner")),
    *((name, 0, math.inf) for name in ("length", "samples", "test_samples", "image_size", "first_epochs")),
    *((name, 0, math.inf) for name in ("weight_decay", "threshold", "calibration_samples", "seed")),
    ("momentum", 0, 1),
    ("batch_size", 2, math.inf),  # batches of one are left out of training, for batch normalisation
)
"""Field, least and largest value."""

_ABOVE_ZERO = ("alpha", "lr", "gamma", "paper_threshold", "paper_divisor")


def kebab(name: str) -> str:
    """A field's name as a key."""
    return name.replace("_", "-")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """That a name is unknown, the nearest known one, and all known ones."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; the known ones are {', '.join(names)}"


def read_changes(items: Sequence[str]) -> dict[str, Any]:
    """Values by kebab-case key from texts such as "epochs=3".

    Raises:
        ConfigError: If a text has another form, a key is unknown, or a value is of the wrong type.
    """
    known, out = {kebab(f.name): type(f.default) for f in fields(Config)}, dict[str, Any]()
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"a change must look like epochs=3, got {item!r}")
        if key not in known:
            raise ConfigError(unknown("key", key, known))
        out[key] = _from_text(key, text, known[key])
    return out


def _from_text(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"{key} must be true or false, got {text!r}")
        return text == "true"
    try:
        return kind(text)
    except ValueError as e:
        raise ConfigError(f"{key} must be of type {kind.__name__}, got {text!r}") from e


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
