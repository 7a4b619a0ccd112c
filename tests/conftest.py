"""Settings for all tests: no telemetry, one thread per test process, no network."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A deadline would make a busy machine fail a test. The same cases every time, so that what fails here fails
# there; `pytest --hypothesis-profile=wild` looks for others, as `simulations.fuzz` does.
settings.register_profile("wild", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent client of a federation in one process stays silent: its timeout passes at once."""
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept, sleep=sleep)
    if exchange := sys.modules.get("fl_unlearn.flower.exchange"):
        monkeypatch.setattr(exchange, "time", clock)


@pytest.fixture(autouse=True)
def _words_are_heard() -> Iterator[None]:
    """A script may silence the loggers of its process; tests after it want to hear them."""
    loggers = [logging.getLogger(name) for name in ("fl_unlearn", "flwr")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
