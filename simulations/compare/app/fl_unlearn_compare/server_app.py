"""The server: trains the federation once, then has every strategy forget from the same stored state.

Started in the repository's folder, with as many nodes as the setting has clients::

    flwr run simulations/compare/app --stream --federation-config "num-supernodes=5 client-resources-num-cpus=1" \
        --run-config "setting='digits-class' strategies='retrain,mask,fine-tune' out-dir='/tmp/compare'"

The run config's keys are in the app's pyproject.toml. ``out-dir`` gets ``results.json``, ``results.csv`` and
``store``; a store that is there already, trained by this app or in one process, is not trained again.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.compare.clients import head_of, make_client
from simulations.compare.flower import FlowerFederation
from simulations.compare.flower_train import train
from simulations.compare.plan import Planned, choose
from simulations.compare.run_config import read_setting
from simulations.compare.setting import Setting
from simulations.compare.train import open_store
from strategies.errors import StrategyError
from strategies.history import History

app = ServerApp()

PATIENCE = 60.0
"""Seconds to wait for all clients to connect."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check, train, compare."""
    show_progress()
    config = context.run_config
    setting, seed = read_setting(config), int(config["seed"])
    folder = Path(str(config["out-dir"] or f"outputs/compare-{context.run_id}")).expanduser().absolute()
    print(f"Output folder: {folder}", flush=True)
    federation = connect(grid, setting, seed, timeout=float(config["timeout"]))
    folder.mkdir(parents=True, exist_ok=True)
    training, head = setting.training(seed), head_of(setting)
    with open_store(setting, seed, folder / "store") as store:
        chosen, refused = choose(str(config["strategies"]), federation, Planned(store, training, head))
        train(grid, setting, seed, store)
        history = History(store, training, head)


def connect(grid: Grid, setting: Setting, seed: int, *, timeout: float) -> FlowerFederation:
    """The clients, once as many are connected as the setting has.

    Raises:
        StrategyError: If they are not within `PATIENCE` seconds, or one is not what the setting says.
    """
    deadline = time.monotonic() + PATIENCE
    while (nodes := len(list(grid.get_node_ids()))) < setting.clients:
        if time.monotonic() > deadline:
            raise StrategyError(
                f"{nodes} of {setting.clients} clients are connected after {PATIENCE:g} s; give flwr run "
                f"--federation-config 'num-supernodes={setting.clients}'"
            )
        time.sleep(0.2)
    request = make_client(setting, seed, 0).request
    assert request is not None
    return FlowerFederation(grid, request, timeout=timeout)


def show_progress() -> None:
    """Print what fl-unlearn logs. Its own logger: a handler at the root would print Flower's lines twice."""
    logger = logging.getLogger("fl_unlearn")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.setLevel(logging.INFO)
