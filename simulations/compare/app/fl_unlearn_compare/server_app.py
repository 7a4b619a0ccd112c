r"""The server: trains the federation once, then has every strategy forget from the same stored state.

Started in the repository's folder, with as many nodes as the setting has clients::

    flwr run simulations/compare/app --stream \
        --federation-config "num-supernodes=5 client-resources-num-cpus=1" \
        --run-config "setting='digits-class' strategies='retrain,mask' out-dir='/tmp/compare'"

The run config's keys are in the app's pyproject.toml. What is written, and where, is as
``python -m simulations.compare`` has it: each goes on from what the other has made in the same folder, and
that command puts the seeds of several runs together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_unlearn.metrics import METRICS
from simulations.compare.clients import head_of, make_client
from simulations.compare.experiment import Bench, run_all, strategies_of
from simulations.compare.flower import FlowerFederation, await_clients, show_progress
from simulations.compare.flower_train import train
from simulations.compare.jobs import check, collect, folder_of
from simulations.compare.results import RETRAIN
from simulations.compare.run_config import names_of, read_setting
from simulations.compare.setting import Setting
from simulations.compare.train import open_store
from simulations.compare.write import FILES, write_all
from strategies import STRATEGIES
from strategies.errors import StrategyError
from strategies.history import History

app = ServerApp()


@dataclass(frozen=True)
class Run:
    """What the run config asks for."""

    name: str
    setting: Setting
    seed: int
    strategies: tuple[str, ...]
    metrics: tuple[str, ...]
    out: Path
    timeout: float


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check, train, run and measure the strategies, write the results."""
    show_progress()
    torch.set_num_threads(1)  # the same result as in one process
    run = read_run(context)
    print(f"Output folder: {run.out}", flush=True)
    federation = connect(grid, run)
    folder, training = folder_of(run.name, run.seed, run.out), run.setting.training(run.seed)
    with open_store(run.setting, run.seed, folder / "store") as store:
        train(grid, run.setting, run.seed, store)
        history = History(store, training, head_of(run.setting))
        bench = Bench(federation, history, folder, run.metrics)
        run_all(bench, strategies_of(run.strategies), lambda text: print(text, flush=True))
    comparison = collect(run.name, run.setting, run.strategies, run.metrics, [run.seed], run.out)
    print(write_all([comparison], run.out))
    print(f"Written to {run.out}: {', '.join(FILES)}", flush=True)


def read_run(context: Context) -> Run:
    """What the run config asks for, checked; retraining is always run, as the yardstick.

    Raises:
        StrategyError: If a strategy or a metric is not known.
        UnsupportedError: If none of the strategies can serve the request.
        ValueError: If the setting makes no sense.
    """
    config = context.run_config
    name, setting, seed = str(config["setting"]), read_setting(config), int(config["seed"])
    asked = names_of(config["strategies"]) or tuple(STRATEGIES)
    metrics = names_of(config["metrics"]) or tuple(METRICS)
    if unknown := [m for m in metrics if m not in METRICS]:
        raise StrategyError(f"unknown metric {unknown[0]!r}: the known ones are {', '.join(METRICS)}")
    names = tuple(dict.fromkeys((RETRAIN, *asked)))
    check(name, setting, names, asked, [seed])
    out = Path(str(config["out-dir"] or f"outputs/compare-{context.run_id}")).expanduser().absolute()
    return Run(name, setting, seed, names, metrics, out, float(config["timeout"]))


def connect(grid: Grid, run: Run) -> FlowerFederation:
    """The clients, once as many are connected as the setting has.

    Raises:
        StrategyError: If they are not within a minute, or one is not what the setting says.
    """
    await_clients(grid, run.setting.clients)
    request = make_client(run.setting, run.seed, 0).request
    assert request is not None
    return FlowerFederation(grid, request, timeout=run.timeout)
