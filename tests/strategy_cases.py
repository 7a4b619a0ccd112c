"""A small trained federation for tests of strategies: digits, few clients, trained once a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fl_unlearn.verify import score
from simulations.compare.clients import make_clients
from simulations.compare.local import LocalFederation
from simulations.compare.setting import Setting
from simulations.compare.train import open_history
from strategies.client import Client, Part
from strategies.history import History


@dataclass(frozen=True)
class Case:
    """A trained federation, and what is to be forgotten."""

    setting: Setting
    history: History
    clients: tuple[Client, ...]

    def federation(self) -> LocalFederation:
        """The clients, nothing spent yet."""
        assert self.clients[0].request is not None
        return LocalFederation(self.clients, self.clients[0].request)

    def accuracy(self, state, part: Part, classes: tuple[int, ...] | None = None) -> float | None:
        """Accuracy over all clients' samples of a part; of some classes only, where they are given."""
        model, total = self.clients[0].model(state), None
        for client in self.clients:
            own = score(model, client.batches(part))
            total = own if total is None else total + own
        return total.accuracy(classes)


@lru_cache
def trained(name: str = "digits-class", *, seed: int = 0, **changes) -> Case:
    """A federation of 3 clients after 5 rounds (half a second), or as ``changes`` say. Do not write to it.

    The trained model knows nearly everything that it was trained on.
    """
    setting = Setting.named(name, **{"clients": 3, "rounds": 5, **changes})
    folder = Path(tempfile.mkdtemp(prefix="fl-unlearn-case-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    history = open_history(setting, seed, folder)
    return Case(setting, history, tuple(make_clients(setting, seed)))
