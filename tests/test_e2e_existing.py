"""Existing projects, before and after, through `flwr run` on Flower's real simulation engine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import existing
import pytest
import torch
from existing import FORGET, PROJECTS
from test_existing import DOCUMENT, check_forgotten

from fl_unlearn.inbox import Inbox
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import StoreError
from simulations.local_flower import LocalFlower

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def flower() -> Iterator[LocalFlower]:
    with LocalFlower(existing.NODES, quiet=True) as engine:
        yield engine


def ask(store: Path) -> None:
    """As an operator does it: on the command line, whatever else goes on in the store."""
    command = [sys.executable, "-m", "fl_unlearn.cli", "request", "add", str(store), "--class", str(FORGET)]
    subprocess.run([*command, "--requester", "operator"], check=True, capture_output=True)


def ask_after(rounds: int, store: Path) -> None:
    """Ask as soon as the store tells of that many rounds."""
    for _ in range(6000):
        try:
            with RunStore(store, read_only=True) as opened:
                if opened.umig.last_round() >= rounds:
                    break
        except StoreError:  # not made yet
            pass
        time.sleep(0.1)
    Inbox(store).add(DOCUMENT)  # not a command: starting one takes as long as some rounds


def model_of(path: Path) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in torch.load(path, weights_only=True).items()}


@pytest.mark.parametrize("project", PROJECTS)
def test_before_and_after_train_the_same_bits(project: str, flower: LocalFlower, tmp_path: Path) -> None:
    models = {}
    for when in ("before", "after"):
        path = tmp_path / f"{when}.pt"
        store = {"store": str(tmp_path / "store")} if when == "after" else {}
        flower.run(existing.app(project, when), {"final-model": str(path), **store})
        models[when] = model_of(path)
    assert models["before"] == models["after"]


@pytest.mark.parametrize("project", PROJECTS)
def test_a_request_made_while_it_trains(project: str, flower: LocalFlower, tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "m.pt"
    operator = threading.Thread(target=ask_after, args=(2, store))
    operator.start()
    options = {"final-model": str(path), "store": str(store), "num-server-rounds": 15}
    flower.run(existing.app(project, "after"), options)
    operator.join()
    check_forgotten(project, store)
    hits = existing.right(project, torch.load(path, weights_only=True))
    assert hits[FORGET] == 0


def test_a_request_made_later(flower: LocalFlower, tmp_path: Path) -> None:
    """The app runs again, for no rounds: what is due is served on the stored model."""
    store, path = tmp_path / "store", tmp_path / "m.pt"
    options = {"final-model": str(path), "store": str(store)}
    flower.run(existing.app("pytorch", "after"), options)
    assert existing.right("pytorch", torch.load(path, weights_only=True))[FORGET] > 20
    ask(store)
    flower.run(existing.app("pytorch", "after"), {**options, "num-server-rounds": 0})
    assert existing.right("pytorch", torch.load(path, weights_only=True))[FORGET] == 0
