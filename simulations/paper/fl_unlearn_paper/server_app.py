r"""The server: trains a scenario's models at their owners, forgets in all of them, measures.

Started in the repository's folder, with as many nodes as the scenario has owners::

    flwr run simulations/paper --stream \
        --federation-config "num-supernodes=4 client-resources-num-cpus=1" \
        --run-config simulations/paper/configs/diamond-digits-mlp-small.toml

or with single values; Flower takes a file or values, not both::

    flwr run simulations/paper --stream \
        --federation-config "num-supernodes=4 client-resources-num-cpus=1" \
        --run-config "model='mlp' epochs=5 out-dir='/tmp/diamond' commit=true"

The keys, with what they are when not given, are in the app's pyproject.toml. Where there is another one,
Flower 1.41 says no more than "Invalid run configuration"; which one, and what else does not fit, says::

    python -m simulations.inheritance FILE --flower --set epochs=5

which starts an engine of its own with the right number of nodes, runs this app on it, stops it, and fails if
the run failed (``flwr run --stream`` does not: see ``flwr ls``).

Relative paths (``out-dir``, ``data-root``, ``weights``) start from the folder that Flower's SuperLink was
started in: that of the first ``flwr run``, which leaves it running. What is written is as without
``--flower``; each engine goes on from what the other has made in the same folder.
"""

from __future__ import annotations

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.compare.flower import show_progress
from simulations.inheritance.commit import commit
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.flower import connect, read_run
from simulations.inheritance.folder import finished
from simulations.inheritance.tables import table, write_experiment

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check, train, forget, measure; forget for good where that is asked for."""
    show_progress()
    torch.set_num_threads(1)  # the same result as in one process
    run = read_run(context.run_config)
    tell(f"Output folder: {run.out}")
    config, name = run.world.config, run.out.name
    result = finished(run.out, config, retrain=run.retrain)
    if result is None:
        result = Experiment(run.world, connect(grid, run), run.out, tell).run(retrain=run.retrain)
    write_experiment(name, result, run.out)
    tell(table(name, result))
    if run.commit:
        tell(f"{commit(run.world, run.out)} models have forgotten for good")


def tell(text: str) -> None:
    """Say it at once: Flower reads what a run prints through a pipe."""
    print(text, flush=True)
