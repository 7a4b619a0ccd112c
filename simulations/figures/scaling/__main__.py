"""Time to unlearn against the number of affected models, ours beside sequential retraining.

For every number a random graph with that many affected models is trained, each model for a few steps on from
the mean of its parents; those without parents are one network that never saw what is to be forgotten. One
update is then found for the whole graph and applied to all affected checkpoints. Retraining is measured on
some of the affected models and extrapolated to all of them: it is their training again, without what is to
be forgotten, one after another. Everything computes on one thread; checkpoints are written by several.
Numbers whose result is there already are not measured again; an interrupted training goes on.

    python -m simulations.figures.scaling                                               # digits, minutes
    python -m simulations.figures.scaling 10 30 100 --data ~/cifar10 --max-examples 5000   # CIFAR-10
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fl_unlearn.files import write_atomically
from fl_unlearn.types import UnlearnError
from simulations.figures.scaling.measure import RefusedError, Setting, measured
from simulations.figures.scaling.show import draw, table, write_csv
from simulations.scenarios.contract import ScenarioError

COUNTS = (10, 30, 100, 300, 1000)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _options(arguments)
    torch.set_num_threads(1)
    names = (
        "data",
        "max_examples",
        "epochs",
        "lr",
        "in_degree",
        "share",
        "owners",
        "forget",
        "retrain",
        "seed",
    )
    try:
        setting = Setting(**{name: getattr(options, name) for name in names})
        _same_setting(options.out, setting)
        rows = [_row(setting, count, options.out) for count in sorted(set(options.affected))]
    except (RefusedError, ScenarioError, UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on from here")
        return 130
    write_csv(rows, options.out / "table.csv")
    (options.out / "table.md").write_text(table(rows) + "\n")
    picture = draw(rows)
    for ending in ("png", "pdf"):
        picture.savefig(options.out / f"scaling.{ending}", dpi=150)
    print(json.dumps(rows, indent=1) if options.json else table(rows))
    _tell(f"written to {options.out}: table.csv, table.md, scaling.png and scaling.pdf")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.figures.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    d = Setting()
    add = parser.add_argument
    add("affected", nargs="*", type=int, default=COUNTS, help=f"numbers of affected models; default {COUNTS}")
    add("--data", default=d.data, help="folder with train*.parquet and test*.parquet; '': digits")
    add("--max-examples", type=int, default=d.max_examples, help="training pictures; 0: every one")
    add("--epochs", type=int, default=d.epochs, help="passes over its owner's data in each training")
    add("--lr", type=float, default=d.lr, help="learning rate")
    add("--in-degree", type=float, default=d.in_degree, help="mean number of parents")
    add("--share", type=float, default=d.share, help="share of the models that is affected; up to 0.9")
    add(
        "--owners", type=int, default=d.owners, help="owners of the data, half of whom hold what is forgotten"
    )
    add("--forget", type=int, nargs="+", default=d.forget, help="classes to forget")
    add("--retrain", type=int, default=d.retrain, help="affected models on which retraining is measured")
    add("--seed", type=int, default=d.seed, help="of everything random")
    add("--out", type=Path, default=Path("outputs/scaling"), help="where everything goes")
    add("--json", action="store_true", help="print the rows as JSON instead of a table")
    return parser.parse_args(arguments)


def _same_setting(out: Path, setting: Setting) -> None:
    """Remember the setting in ``out``, so that results of another are never taken for its own."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "options.json", json.dumps(asdict(setting), sort_keys=True)
    made = (out / "rows").exists() or any(out.glob("models-*"))
    if made and path.exists() and path.read_text() != text:
        raise ValueError(f"{out} holds results of other options ({path.read_text()}); name another --out")
    path.write_text(text)


def _row(setting: Setting, affected: int, out: Path) -> dict[str, Any]:
    """What was measured for one number of affected models; read where it is there already."""
    path, work = out / "rows" / f"{affected}.json", out / f"models-{affected}"
    if not path.exists():
        row = measured(setting, affected, work, lambda text: _tell(f"{affected} affected: {text}"))
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(row).encode())
    shutil.rmtree(work, ignore_errors=True)  # thousands of checkpoints that nobody needs any more
    row = json.loads(path.read_text())
    return dict(row)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
