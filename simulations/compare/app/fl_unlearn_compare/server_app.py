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
