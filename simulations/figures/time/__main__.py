"""Time against every strategy: what each takes to make every affected model of a graph forget.

Trains a graph of models and retrains its affected models without what is to be forgotten, unless that is
there already. Then runs each strategy of `strategies` on each affected model (ours, the paper's and those
that answer for all models at once are run once), and measures all of them on test samples:

    owners' seconds       computing time of all owners, all affected models together
    of retraining         the same as a share of what retraining the affected models takes
    forgotten, retained   test accuracies, mean over the affected models and the worst of them

Everything made is kept in --out and not made twice; delete a strategy's file there to have it run again.
Writes time.csv, time.md, time.png and time.pdf.

    python -m simulations.figures.time --config diamond-digits-mlp-small --out outputs/time
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import strategies
from fl_unlearn.types import UnlearnError
from simulations.compare.local import LocalFederation
from simulations.figures.time.measure import Work
from simulations.figures.time.plot import draw
from simulations.figures.time.table import claim, lines_of, markdown, write_csv
from simulations.inheritance.config import Config, ConfigError, read_changes
from simulations.inheritance.experiment import Experiment, passes_of
from simulations.inheritance.grid import path_of
from simulations.inheritance.node_history import Asked
from simulations.inheritance.world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _options(arguments)
    logging.basicConfig(level=logging.ERROR)
    try:
        config = _config(options.config, options.data, options.set)
        names = [n.strip() for n in options.strategies.split(",") if n.strip()]
        return _run(options, config, names)
    except (UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file, or a shipped one's name")
    parser.add_argument("--data", default="", help="the data set's folder, in place of the config's")
    parser.add_argument("--out", type=Path, default=Path("outputs/time"), help="where to write")
    parser.add_argument(
        "--experiment", type=Path, help="folder of a trained graph of this config; default: made in --out"
    )
    parser.add_argument("--strategies", default=",".join(strategies.STRATEGIES), help="which, with commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config")
    parser.add_argument(
        "--asks", choices=get_args(Asked), default="behind",
        help="whom a strategy asks about a model: every owner whose data it inherited, or its own owner",
    )  # fmt: skip
    parser.add_argument(
        "--round-epochs",
        type=int,
        default=0,
        help="local epochs of a strategy's round; 0: those of the model",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    return parser.parse_args(arguments)


def _config(path: Path, data: str, changes: Sequence[str]) -> Config:
    given = Config.from_file(path_of(path)).to_mapping() | read_changes(changes)
    return Config.from_mapping(given | ({"data-root": data} if data else {}))


def _run(options: argparse.Namespace, config: Config, names: Sequence[str]) -> int:
    if options.round_epochs < 0:
        raise ConfigError(f"--round-epochs must be at least 0, got {options.round_epochs}")
    world = World(config)
    # Progress must not get between the lines of what a program is to read.
    stream = sys.stderr if options.json else sys.stdout

    def tell(text: str) -> None:
        print(text, file=stream, flush=True)

    federation = LocalFederation(list(world.clients.values()), world.request)
    experiment = Experiment(world, federation, options.experiment or options.out / "experiment", tell)
    work = Work(experiment, options.out / "strategies", options.asks, options.round_epochs, tell)
    lines = lines_of(work.run(names))
    write_csv(lines, options.out / "time.csv")
    about = _about(work, names)
    text = f"{claim(lines)}\n\n{about}\n\n{markdown(lines)}\n"
    (options.out / "time.md").write_text(text, encoding="utf-8")
    figure = draw(lines, _title(work), about)
    for ending in ("png", "pdf"):
        figure.savefig(options.out / f"time.{ending}", dpi=150)
    print(json.dumps([asdict(line) for line in lines], indent=1) if options.json else text)
    tell(f"Written to {options.out}")
    return 0


def _title(work: Work) -> str:
    world = work.experiment.world
    labels, c = world.scenario.forget, world.config
    what = f"class {labels[0]}" if len(labels) == 1 else f"classes {', '.join(map(str, labels))}"
    count = len(world.scenario.affected())
    return f"Forgetting {what} in all {count} affected models: {c.scenario}, {c.dataset}, {c.model}"


def _about(work: Work, names: Sequence[str]) -> str:
    whom = "every owner whose data it inherited" if work.asked == "behind" else "the owner that trained it"
    world = work.experiment.world
    planned, c = {m.name: m for m in world.scenario.models}, world.config
    passes = passes_of(world.scenario.models, c)
    trained = sorted({passes[name] for name in world.scenario.affected() if name in passes})
    epochs = " or ".join(map(str, trained))
    rounds = f"{work.round_epochs} local epochs" if work.round_epochs else "as many local epochs"
    text = (
        f"About a model, strategies ask {whom}; affected models were trained for {epochs} epochs, and a "
        f"round of a strategy has {rounds}."
    )
    if c.optimizer != "sgd":
        text += (
            f" The graph was trained by {c.optimizer}; strategies train by SGD, with the same rate, {c.lr:g}."
        )
    plain = sum(planned[name].owner is None for name in world.scenario.affected())
    if "mask" in names:
        text += " mask only hides the classes' logits."
    if plain:
        text += (
            f" Means that nobody trained ({plain} of the models) are changed too; retraining has them free."
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
