"""Trains the federation of a comparison with Flower's FedAvg, recorded by the plug-in."""

from __future__ import annotations

from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_unlearn.flower import UnlearningStrategy, records
from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_store import RunStore
from simulations.compare.clients import initial_state
from simulations.compare.setting import Setting
from strategies.errors import StrategyError


def train(grid: Grid, setting: Setting, seed: int, store: RunStore) -> None:
    """Train all rounds, unless the store has them; a run that was interrupted goes on.

    FedAvg averages in float32 and the engine in one process in float64, so that the trained models of the
    two differ in the last bits (`tests/test_compare_flower.py` says how much); all else is the same.

    Args:
        grid: Flower's Grid, with as many nodes as the setting has clients.
        setting: The setting.
        seed: The federation's seed.
        store: From `train.open_store`.

    Raises:
        StrategyError: If a client was missing from a round.
    """
    if store.umig.last_round() < setting.rounds:
        fedavg = FedAvg(
            fraction_evaluate=0.0, min_available_nodes=setting.clients, min_train_nodes=setting.clients
        )
        strategy = UnlearningStrategy(fedavg, store=store, deterministic=True)
        strategy.start(grid, records.to_arrays(initial_state(setting, seed)), num_rounds=setting.rounds)
    for number in range(1, setting.rounds + 1):
        updates = len(list(store.umig.nodes(kind=NodeKind.CLIENT_UPDATE, round=number)))
        if updates != setting.clients:
            raise StrategyError(
                f"round {number} of training has the updates of {updates} of {setting.clients} clients; see "
                f"the log for why, and train anew in another out-dir than {store.folder.parent}"
            )
