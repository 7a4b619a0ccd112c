r"""The server: trains a scenario's models at their owners, forgets in all of them, measures.

Started in the repository's folder, with as many nodes as the scenario has owners::

    flwr run simulations/paper --stream \
        --federation-config "num-supernodes=4 client-resources-num-cpus=1" \
        --run-config simulations/paper/configs/FILE.toml

or with single values instead of a file, which Flower takes one or the other of::

    flwr run simulations/paper --stream \
        --federation-config "num-supernodes=4 client-resources-num-cpus=1" \
        --run-config "model='mlp' epochs=2 out-dir='/tmp/diamond' commit=true"

The keys, with what they are when not given, are in the app's pyproject.toml; those that Flower does not find
there it refuses. Relative paths (``out-dir``, ``data-root``, ``weights``) start from the folder that Flower's
SuperLink was started in: that of the first ``flwr run``, which leaves it running. ``flwr run --stream`` exits
0 even when the run failed; ``flwr ls`` tells.

What is written, and where, is as ``python -m simulations.inheritance`` has it: each goes on from what the
other has made in the same folder.
"""

from __future__ import annotations

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.compare.flower import show_progress
from simulations.inheritance.commit import commit
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.flower import connect, read_run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check, train, forget, measure; forget for good where that is asked for."""
    show_progress()
    torch.set_num_threads(1)  # the same result as in one process
    run = read_run(context.run_config)
    print(f"Output folder: {run.out}", flush=True)
    federation = connect(grid, run)
    result = Experiment(run.world, federation, run.out, tell).run(retrain=run.retrain)
    for row in result.rows:
        print(row)
    if run.commit:
        tell(f"forgotten for good in {commit(run.world, federation, run.out, tell)} models")


def tell(text: str) -> None:
    """Say it at once: Flower reads what a run prints through a pipe."""
    print(text, flush=True)
