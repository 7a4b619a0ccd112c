"""A federation of four blobs for the matrix of strategies: every client holds every class."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import federation as fed
import pytest
import torch

from fl_unlearn.types import UnlearnSettings
from simulations.figures.strategy_matrix.federation import Data, Problem
from simulations.figures.strategy_matrix.verdict import KEPT, Row, judge

ROUNDS = 4
TOLERANCE = 0.02
"""One of the class's fifty test samples; the clients' own measure must be within the settings' tolerance."""
QUICK = UnlearnSettings(candidates=(1.0, 2.0), dampenings=(1.0, 0.1), calibration_models=1)


def blobs(seed: int, of_each: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(fed.CLASSES).repeat(of_each)
    return fed.blob_centres()[y] + 0.6 * torch.randn(len(y), fed.FEATURES, generator=generator), y


def problem(clients: int) -> Problem:
    first = fed.build_model().state_dict()

    def model() -> fed.Net:
        made = fed.Net()
        made.load_state_dict(first)
        return made

    parts = [blobs(200 + i, 8) for i in range(clients)]
    return Problem(model, parts, blobs(99, 50), forget=3)


def row(api: str, name: str) -> Row:
    """Bulyan needs seven clients to do without one; five are enough for all others."""
    federation = problem(7 if name == "Bulyan" else 5)
    return judge(api, name, federation, ROUNDS, control=name in KEPT, settings=QUICK)


def check(made: Row) -> None:
    """All three of the table, and that the last can fail."""
    assert made.identical
    assert made.before is not None
    assert made.after is not None
    assert made.retained_end is not None
    assert made.before > 0.7
    assert made.committed, made.message
    assert made.after <= TOLERANCE
    assert len(made.lasting) == 5
    assert max(made.lasting) <= TOLERANCE
    assert made.retained_end > 0.95
    if made.strategy in KEPT:
        assert made.control is not None
        assert max(made.control) > 0.05


@pytest.fixture
def quiet() -> Iterator[None]:
    """Flower says a dozen lines a round, and for two strategies collects all garbage for every array."""
    gc.freeze()
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)
    gc.unfreeze()
