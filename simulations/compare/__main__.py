"""Every strategy on the same federation: what it forgot, what it kept, what it cost, beside retraining.

Trains each federation once (per seed), then has every strategy forget on a copy from the same stored state,
and measures. Everything made is kept in --out and not made twice; delete a file there to have it made again.
Writes results.json, results.csv (one tidy row per seed, strategy and metric), tables.md and report.html.

    python -m simulations.compare                                   # digits: a class, and a client
    python -m simulations.compare cifar10-class --data ~/cifar10    # parquet files in the hub's layout
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fl_unlearn.metrics import METRICS
from fl_unlearn.types import UnlearnError
from simulations.compare.jobs import run_jobs
from simulations.compare.setting import SETTINGS, Setting, SettingError
from simulations.compare.write import FILES, write_all
from strategies import STRATEGIES

DEFAULT = ("digits-class", "digits-client")
WITH_DATA = ("cifar10-class", "cifar10-client")


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _options(arguments)
    level = logging.WARNING if options.json else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        settings = _settings(options)
        comparisons = run_jobs(
            settings, options.strategies, options.metrics, options.seeds, options.out, options.jobs
        )
    except (UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    text = write_all(comparisons, options.out)
    if options.json:
        print((options.out / "results.json").read_text())
    else:
        print(text)
        print(f"Written to {options.out}: {', '.join(FILES)}")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Setting]:
    names = options.settings or [*DEFAULT, *(WITH_DATA if options.data else ())]
    changes = dict(_change(item) for item in options.set)
    settings = {name: replace(Setting.named(name), **changes) for name in names}
    for name, setting in settings.items():
        if setting.dataset != "digits" and not options.data:
            raise SettingError(f"{name} needs --data, the folder of its pictures")
    return {n: replace(s, data_root=options.data) for n, s in settings.items()}


def _change(item: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    known = [f.name.replace("_", "-") for f in fields(Setting)]
    if not equals or name not in known:
        raise SettingError(f"--set takes KEY=VALUE with one of {', '.join(known)}; got {item!r}")
    field = next(f for f in fields(Setting) if f.name == name.replace("-", "_"))
    kinds = {"int": int, "float": float, "str": str}
    try:
        return field.name, kinds[str(field.type)](value)
    except ValueError as e:
        raise SettingError(f"--set {name} takes a value of type {field.type}, got {value!r}") from e


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTING",
        help=f"comparisons to make: {', '.join(SETTINGS)} (default: {', '.join(DEFAULT)}; "
        f"with --data also {', '.join(WITH_DATA)})",
    )
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one federation for each")
    parser.add_argument("--data", default="", help="folder of the pictures, for settings that need one")
    parser.add_argument("--out", type=Path, default=Path("outputs/compare"), help="where everything goes")
    parser.add_argument("--jobs", type=int, default=2, help="federations at a time, one core each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the settings")
    parser.add_argument("--json", action="store_true", help="print results.json instead of tables")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
