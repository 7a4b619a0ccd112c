"""What a comparison is about: the data, who owns which part of it, how it is trained, what is forgotten."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fl_unlearn.types import ForgetRequest, RequestError
from strategies.history import Training


class SettingError(ValueError):
    """A setting that makes no sense."""


@dataclass(frozen=True)
class Setting:
    """One comparison. In a run config the names are kebab-case.

    Attributes:
        dataset: A data set of the quickstart: "digits", "parquet", "cifar10"...
        data_root: The data set's folder; "digits" needs none.
        pictures: Training pictures in all, in equal share of every class; 0: all.
        clients: How many clients share them.
        alpha: Label skew of the Dirichlet partition; small values give each client few classes.
        rounds: Rounds of FedAvg.
        epochs: Local epochs a round.
        batch_size: Pictures a step.
        lr: Learning rate of SGD.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        forget_classes: Labels to forget, such as "3" or "1,9"; "": none.
        forget_clients: Clients to forget, such as "0"; with classes: only their data of these.
        forget_samples: Samples to forget, as client:number, such as "0:40": that many of the client's, drawn
            by the seed.
        backdoor_client: Client whose training pictures get a trigger planted; "": nobody's.
        backdoor_share: Share of its pictures that get it.
        backdoor_label: The label that the trigger is to cause.
    """

    dataset: str = "digits"
    data_root: str = ""
    pictures: int = 0
    clients: int = 5
    alpha: float = 1.0
    rounds: int = 20
    epochs: int = 2
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    forget_classes: str = "3"
    forget_clients: str = ""
    forget_samples: str = ""
    backdoor_client: str = ""
    backdoor_share: float = 0.5
    backdoor_label: int = 0

    def __post_init__(self) -> None:
        for name in ("clients", "rounds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{_kebab(name)} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.backdoor_share <= 1:
            raise SettingError(f"backdoor-share must be above 0, at most 1, got {self.backdoor_share}")
        known = {str(i) for i in range(self.clients)}
        named = [*_parts(self.forget_clients), *self.samples_wanted(), *_parts(self.backdoor_client)]
        if unknown := [c for c in named if c not in known]:
            raise SettingError(f"there is no client {unknown[0]!r}: they are 0 to {self.clients - 1}")
        if not (self.forget_classes or self.forget_clients or self.forget_samples):
            raise SettingError("name something to forget: forget-classes, forget-clients or forget-samples")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Setting:
        """Read a setting from kebab-case keys; other keys than a setting's are left alone."""
        given = {f.name: config[_kebab(f.name)] for f in fields(cls) if _kebab(f.name) in config}
        return cls(**given)

    @classmethod
    def named(cls, name: str, **changes: Any) -> Setting:
        """One of `SETTINGS`, with some values changed.

        Raises:
            SettingError: If there is none of that name, or a value makes no sense.
        """
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingError(f"unknown setting {name!r}: the known ones are {', '.join(SETTINGS)}{hint}")
        return cls(**{**SETTINGS[name], **changes})

    def to_config(self) -> dict[str, Any]:
        """The setting by kebab-case key."""
        return {_kebab(name): value for name, value in asdict(self).items()}

    def training(self, seed: int) -> Training:
        """How the federation is trained."""
        return Training(
            self.rounds, self.epochs, self.batch_size, self.lr, self.momentum, self.weight_decay, seed
        )

    def samples_wanted(self) -> dict[str, int]:
        """Client to how many of its samples are to be forgotten.

        Raises:
            SettingError: If ``forget_samples`` is not of the form client:number.
        """
        out = {}
        for part in _parts(self.forget_samples):
            client, colon, number = part.partition(":")
            if not colon or not number.isdecimal() or not int(number):
                raise SettingError(f"forget-samples must look like '0:40', got {part!r}")
            if client in out:
                raise SettingError(f"forget-samples names client {client} twice, got {self.forget_samples!r}")
            out[client] = int(number)
        return out

    def request(self, samples: Mapping[str, tuple[int, ...]]) -> ForgetRequest:
        """The request; ``samples`` are the positions drawn for `samples_wanted`."""
        try:
            classes = tuple(int(c) for c in _parts(self.forget_classes))
        except ValueError as e:
            text = self.forget_classes
            raise RequestError(f"forget-classes must look like '3' or '1,9', got {text!r}") from e
        return ForgetRequest(classes, tuple(_parts(self.forget_clients)), samples=samples)

    def trained_like(self) -> str:
        """What decides the trained federation, as JSON: all but what is forgotten and where the data lies."""
        out = {k: v for k, v in asdict(self).items() if not k.startswith("forget_") and k != "data_root"}
        return json.dumps(out, sort_keys=True)


_CIFAR = {
    "dataset": "parquet",
    "pictures": 20_000,
    "alpha": 100.0,
    "rounds": 15,
    "epochs": 1,
    "lr": 0.05,
    "forget_classes": "0",
}
_BACKDOOR = {"alpha": 0.3, "forget_classes": "", "forget_clients": "0", "backdoor_client": "0"}

SETTINGS: dict[str, dict[str, Any]] = {
    "digits-class": {},
    "digits-classes": {"forget_classes": "1,9"},
    "digits-client": _BACKDOOR,
    "digits-samples": {"forget_classes": "", "forget_samples": "0:40"},
    "cifar10-class": _CIFAR,
    "cifar10-client": {**_CIFAR, **_BACKDOOR},
}
"""Comparisons by name: what they change in the defaults."""


def _parts(text: str) -> list[str]:
    return [p.strip() for p in str(text).split(",") if p.strip()]


def _kebab(name: str) -> str:
    return name.replace("_", "-")
