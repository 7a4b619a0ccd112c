"""The folder of an experiment: whose it is, whether it is finished, and how it is emptied."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulations.inheritance.config import Config, ConfigError, kebab
from simulations.inheritance.kept import MEASURED, read_json, write_json
from simulations.inheritance.methods import KEYS
from simulations.inheritance.results import FILE, Result

CONFIG = "config.json"
SECONDS = "seconds.json"
MODELS = "models"
RETRAINED_MODELS = "retrained"
APPLIED = "methods"
POINTS = "points.json"
"""What figures tried on the trained graph."""

ELSEWHERE = ("data_root", "download", "device")
"""Fields of a `Config` that say where, not what."""


def trained_like(config: Config) -> dict[str, Any]:
    """What decides the trained graphs, by kebab-case key."""
    free = {"methods", *KEYS, *ELSEWHERE}
    return {kebab(k): v for k, v in asdict(config).items() if k not in free}


def key_of(config: Config) -> dict[str, Any]:
    """What decides what methods make of the trained graphs, by kebab-case key."""
    return {kebab(k): getattr(config, k) for k in KEYS}


def finished(out: Path, config: Config, *, retrain: bool = True) -> Result | None:
    """The result of this config that a folder holds; None where it holds none, or not all of it.

    Args:
        out: The folder.
        config: The config.
        retrain: Whether it must have been retrained.
    """
    try:
        found = Result.load(out)
    except (ValueError, TypeError, KeyError):  # damaged, or of another version
        return None
    if found is None or (retrain and not found.retrain):
        return None
    same = {kebab(k): getattr(config, k) for k in ELSEWHERE}
    return found if {**found.config, **same} == config.to_mapping() else None


def clear(out: Path, *, trained: bool = True) -> None:
    """Remove what an experiment made in a folder, and nothing else.

    Args:
        out: The folder.
        trained: Also the trained and retrained models.
    """
    for name in (APPLIED, *((MODELS, RETRAINED_MODELS) if trained else ())):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (FILE, MEASURED, POINTS, *((SECONDS, CONFIG) if trained else ())):
        (out / name).unlink(missing_ok=True)


def claim(out: Path, config: Config) -> None:
    """Make a folder this config's.

    Raises:
        ConfigError: If it holds what another config trained; it says what differs.
    """
    like = trained_like(config)
    out.mkdir(parents=True, exist_ok=True)
    there = read_json(out / CONFIG)
    made = (MODELS, RETRAINED_MODELS, MEASURED, FILE)
    if there is None or not any((out / name).exists() for name in made):  # nothing was trained yet
        write_json(out / CONFIG, like)
        return
    defaults = trained_like(Config())
    differs = [f"{k} {there.get(k, defaults[k])!r}" for k in like if there.get(k, defaults[k]) != like[k]]
    if differs:
        raise ConfigError(
            f"{out} holds another experiment, trained with {', '.join(differs)}; name another folder with "
            "--out, or have it made anew with --again"
        )
