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

# A deadline would make a busy machine fail a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


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


def _levels() -> dict[str, tuple[int, bool, bool]]:
    """What decides whether our own words are heard: level, whether disabled, whether handed on."""
    named = {name: logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict)}
    ours = {name: log for name, log in named.items() if name.partition(".")[0] == "fl_unlearn"}
    return {name: (log.level, log.disabled, log.propagate) for name, log in ours.items()}


@pytest.fixture(autouse=True)
def _words_are_heard() -> Iterator[None]:
    """A test that silences the package for itself silences it for later ones, in whatever order."""
    before, disabled = _levels(), logging.root.manager.disable
    yield
    after = _levels()
    changed = {name: (was, after[name]) for name, was in before.items() if after[name] != was}
    assert not changed, f"loggers left changed (level, disabled, propagate): {changed}"
    assert logging.root.manager.disable == disabled, "logging.disable was left changed"
