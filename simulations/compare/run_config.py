"""A comparison's setting from the run config of its Flower app: a preset, and what differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from simulations.compare.setting import Setting, SettingError

NOTHING = "none"
"""Stands for the empty text, which as a value says "as in the preset"."""


def read_setting(config: Mapping[str, Any]) -> Setting:
    """The setting of a run.

    Args:
        config: The run config: ``setting``, the name of one of `setting.SETTINGS`, and the fields of
            `Setting` by kebab-case key, where "" means "as in the preset" and "none" an empty text.

    Raises:
        SettingError: If there is no such preset, or a value makes no sense.
    """
    changes = {}
    for field in fields(Setting):
        key = field.name.replace("_", "-")
        if (value := config.get(key, "")) != "":
            changes[field.name] = _typed(key, value, type(field.default))
    return Setting.named(str(config["setting"]), **changes)


def names_of(text: Any) -> tuple[str, ...]:
    """The names in a text with commas between them, without repeats."""
    return tuple(dict.fromkeys(part.strip() for part in str(text).split(",") if part.strip()))


def _typed(key: str, value: Any, kind: type) -> str | int | float:
    """A value as the field's type: TOML takes 1 for a whole number, and so ``forget-classes=3``."""
    if kind is str:
        return "" if value == NOTHING else str(value)
    try:
        number = float(value)
    except ValueError as e:
        raise SettingError(f"{key} must be a number, got {value!r}") from e
    if kind is float:
        return number
    if number != int(number):
        raise SettingError(f"{key} must be a whole number, got {value!r}")
    return int(number)
