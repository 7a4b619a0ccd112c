"""Kill processes that work on a store, and see whether the next start finishes the work: ``make faults``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

from simulations.faults.counts import Counts
from simulations.faults.harness import Harness


def main() -> int:
    """Run it; returns the exit status: 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m simulations.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="processes to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/faults.json"), help="where to write")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills must be at least 1, got {options.kills}")
    logging.getLogger("fl_unlearn").setLevel(logging.CRITICAL)  # what it repairs is counted here
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults-", dir=options.folder) as folder:
        counts = Harness(Path(folder), options.seed, _Progress(options.kills)).run(options.kills)
    print(counts.table())
    print(f"{counts.killed} kills in {counts.seconds:.0f} s, seed {options.seed}; written to {options.json}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"seed": options.seed, **counts.plain()}, indent=2) + "\n")
    return 0 if counts.good else 1


class _Progress:
    def __init__(self, kills: int) -> None:
        self._kills, self._told = kills, time.monotonic()

    def __call__(self, counts: Counts) -> None:
        if time.monotonic() - self._told >= 5:
            self._told = time.monotonic()
            failures = sum(counts.failures.values())
            print(f"{counts.killed} of {self._kills} kills, {failures} failures", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
