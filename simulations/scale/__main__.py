"""One forget request over very many clients: ``python -m simulations.scale`` (minutes; ``--help``).

Every number of clients is run twice: on Flower's simulation engine (``flwr run``), whose SuperLink and Ray
driver are in the server's process, and through pipes, where the server's process holds nothing but the
library. Each run has a server process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.local_flower import LocalFlower, RunFailedError, Value
from simulations.scale.show import picture, table

APP = Path(__file__).parent / "app"
CASES: dict[str, dict[str, Value]] = {
    "small": {"hidden": 64, "scope": "head"},
    "wide": {"hidden": 7000, "scope": "all"},
    "erasing": {"hidden": 256, "scope": "head", "erase": "auto"},
}
"""What is trained and asked for: a model of 20 kB and its head; one of 2 MB and all of it; and, in one of
80 kB, the statistics of its hidden layer as well (a matrix of half a megabyte from each client)."""
COMMON: dict[str, Value] = {
    "samples": 20,
    "labels": 3,
    "erase": "none",
    "rounds": 20,
    "clients-per-round": 10,
    "forget": 3,
}
ENGINES = ("pipes", "flower")


def run(engine: str, case: str, clients: int, folder: Path) -> dict[str, Any]:
    """One run; returns what the server wrote, and the seconds from start to end.

    Raises:
        RunFailedError: If it did not complete.
    """
    out = (folder / f"{engine}-{case}-{clients}.json").absolute()
    out.unlink(missing_ok=True)
    config = {**COMMON, **CASES[case], "clients": clients, "out": str(out)}
    load, began = os.getloadavg()[0], time.monotonic()
    if engine == "flower":
        with LocalFlower(clients, quiet=True) as flower:
            flower.run(APP, config, timeout=7200)
    else:
        command = [sys.executable, "-m", "simulations.scale.piped", json.dumps(config), str(out)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RunFailedError(f"{case}, {clients} clients: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    about = {"engine": engine, "case": case, "load_before": load, "cores": os.cpu_count()}
    return {**about, "run_seconds": time.monotonic() - began, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write JSON, Markdown and picture; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000], help="how many")
    parser.add_argument("--engine", choices=ENGINES, nargs="+", default=[*ENGINES])
    parser.add_argument("--case", choices=[*CASES], nargs="+", default=[*CASES])
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/scale"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if min(options.clients) < COMMON["clients-per-round"]:
        parser.error(f"--clients must be at least {COMMON['clients-per-round']}, which train in each round")
    options.out.mkdir(parents=True, exist_ok=True)
    path, results = options.out / "scale.json", list[dict[str, Any]]()
    try:
        for engine in options.engine:
            for case in options.case:
                for clients in options.clients:
                    results.append(run(engine, case, clients, options.out))
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    print(table(results[-1:], head=len(results) == 1), flush=True)
    except RunFailedError as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    (options.out / "scale.md").write_text(table(results) + "\n")
    picture(results).savefig(options.out / "scale.svg")
    print(f"\nWritten to {options.out}: scale.json, scale.md, scale.svg")
    return 0 if all(r["committed"] and r["answered"] == r["clients"] for r in results) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
