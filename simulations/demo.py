"""The demonstration behind ``make demo``: the quickstart through `flwr run`, on an engine of its own."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from simulations.local_flower import LocalFlower, RunFailedError

APP = Path(__file__).parent / "quickstart"


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out-dir", type=Path, default=Path("outputs/demo"), help="folder below which to write"
    )
    parser.add_argument("--clients", type=int, default=10, help="how many clients to simulate")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="run-config keys to override"
    )
    options = parser.parse_args()
    folder = (options.out_dir / time.strftime("%Y%m%d-%H%M%S")).absolute()
    config: dict[str, str | int | float | bool] = {"retrain": True}
    for item in options.set:
        key, _, value = item.partition("=")
        try:
            config[key] = json.loads(value)
        except ValueError:
            config[key] = value
    started = time.perf_counter()
    try:
        with LocalFlower(options.clients) as flower:
            flower.run(APP, {**config, "out-dir": str(folder)})
    except RunFailedError as e:
        print(f"the demonstration failed: {e}", file=sys.stderr)
        return 1
    if not (folder / "report.md").is_file():
        print(f"the run completed but wrote no report to {folder}", file=sys.stderr)
        return 1
    print(f"Took {time.perf_counter() - started:.0f} s. The report: {folder / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
