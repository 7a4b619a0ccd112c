"""Flower's deployment engine on this machine: a SuperLink and SuperNodes on loopback, with TLS and keys.

Starts them, trains the quickstart on handwritten digits, forgets a class, prints what was done and the end
state of the ledger, and stops all processes. Exit status: 0, 1 (something failed), 130 (interrupted).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulations.deploy.demo import demonstrate


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.deploy", description=__doc__)
    parser.add_argument("--insecure", action="store_true", help="without TLS and node keys")
    parser.add_argument("--supernodes", type=_at_least(2), default=3, metavar="N", help="clients (3)")
    parser.add_argument("--rounds", type=_at_least(1), default=3, metavar="N", help="rounds of training (3)")
    parser.add_argument("--forget", default="3", metavar="CLASSES", help='classes, such as "3" or "1,9" (3)')
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/deploy"),
        help="folder below which to write (outputs/deploy)",
    )
    parser.add_argument("--keep-logs", action="store_true", help="keep keys and logs of all processes")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON on stdout, else on stderr")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcome = demonstrate(
            (options.out / time.strftime("%Y%m%d-%H%M%S")).absolute(),
            supernodes=options.supernodes,
            insecure=options.insecure,
            config={
                "num-server-rounds": options.rounds,
                "forget-classes": options.forget,
                # One question less to all clients in each round: every one takes seconds here.
                "fraction-evaluate": 0.0,
            },
            keep_logs=options.keep_logs,
            stream=sys.stderr if options.json else sys.stdout,
        )
    except KeyboardInterrupt:
        print("interrupted; all processes are stopped", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps({**asdict(outcome), "folder": str(outcome.folder)}, indent=1))
    return 1 if outcome.problems else 0


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got {text!r}")
        return int(text)

    return number


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
