"""The paper's figures and tables on graphs of models, each as CSV, Markdown, PNG and PDF.

Trains what is missing and takes up what was interrupted: graphs, and everything measured of one, are in
--experiments/NAME, where ``python -m simulations.inheritance`` leaves them too. Figures that a config does
not fit are left out. A table is of the configs that are named, and replaces the one that was there.

    python -m simulations.figures.inherited single-class threshold --config diamond.toml --out outputs/figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_unlearn.types import UnlearnError
from simulations.figures.inherited.command import Order, fulfil, read_configs
from simulations.figures.inherited.picture import Grid
from simulations.figures.inherited.registry import FIGURES


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the figures; returns the exit status."""
    options = _options(arguments)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        configs = read_configs(options.config, options.set, options.data)
        order = Order(
            options.names or list(FIGURES), configs, _grid(options), options.out, options.experiments
        )
        made = fulfil(order, tell)
    except (UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps([one.to_json() for one in made], indent=1))
    else:
        print("\n\n".join(one.text() for one in made))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:16}{picture.about}" for name, picture in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m simulations.figures.inherited",
        description=f"{__doc__}\nfigures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which figures; all that fit, if none is named")
    add(
        "--config",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="TOML files, or shipped ones' names",
    )
    add("--data", default="", metavar="FOLDER", help="the data set's folder; also data-root in a config")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="values other than the configs'")
    add("--thresholds", default="", metavar="T,T,...", help="grid of threshold and mfim")
    add("--overlaps", default="", metavar="S,S,...", help="grid of overlap, each from 0 to 1")
    add("--out", type=Path, default=Path("outputs/paper-figures"), metavar="DIR", help="where to write")
    add(
        "--experiments",
        type=Path,
        default=Path("outputs/inheritance"),
        metavar="DIR",
        help="where graphs are",
    )
    add("--json", action="store_true", help="print what was made as JSON; progress is on stderr")
    return parser.parse_args(arguments)


def _grid(options: argparse.Namespace) -> Grid:
    given = {k: _numbers(k, getattr(options, k)) for k in ("thresholds", "overlaps") if getattr(options, k)}
    return Grid(**given)


def _numbers(what: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError as e:
        raise ValueError(f"--{what} must be numbers with commas between them, got {text!r}") from e


if __name__ == "__main__":
    sys.exit(main())
