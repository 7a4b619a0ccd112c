"""Every strategy of the installed Flower on one federation: bit-identical, forgets, stays forgotten.

Handwritten digits, clients in one process, no Ray. Each strategy is run bare; wrapped, with one class to
forget after the given rounds and five more rounds of training without it; and as a control, where the model
is dampened and what the strategy remembers is put back as it was. Strategies of trees train boosters made by
hand and are asked to forget too: they must refuse.

    python -m simulations.figures.strategy_matrix
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from simulations.figures.strategy_matrix.digits import digits
from simulations.figures.strategy_matrix.verdict import APIS, Row, judge, table


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 1 if a strategy differs, or remembers what it should not."""
    options = _options(arguments)
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    logging.getLogger("fl_unlearn").setLevel(logging.CRITICAL)
    problem = digits(options.clients, options.forget)
    gc.freeze()  # two strategies collect garbage for every array
    started, rows = time.perf_counter(), []
    for api, (cases, _) in APIS.items():
        for name in cases:
            if options.only and name not in options.only:
                continue
            rows.append(judge(api, name, problem, options.rounds, control=not options.no_control))
            print(f"{time.perf_counter() - started:6.0f} s  {api}.{name}", file=sys.stderr, flush=True)
    setting = {k: v for k, v in vars(options).items() if k not in ("out", "only")}
    report = {"flwr": version("flwr"), **setting, "seconds": round(time.perf_counter() - started, 1)}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**report, "rows": [asdict(row) for row in rows]}, indent=1)
    (options.out / "strategies.json").write_text(text + "\n")
    (options.out / "strategies.md").write_text(table(rows) + "\n")
    print(table(rows))
    print(f"flwr {report['flwr']}, {report['seconds']:.0f} s; written to {options.out}", file=sys.stderr)
    return 0 if all(map(holds, rows)) else 1


def holds(row: Row) -> bool:
    """Whether a strategy is as promised; one of trees must refuse, and nothing is measured of it."""
    if row.before is None:
        return row.identical and "refused" in row.message
    return row.identical and row.committed and max(row.after or 0.0, *row.lasting) <= 0.01


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.figures.strategy_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("only", nargs="*", help="names of strategies; default all")
    parser.add_argument("--clients", type=int, default=10, help="how many")
    parser.add_argument("--rounds", type=int, default=10, help="rounds before the request")
    parser.add_argument("--forget", type=int, default=3, help="the class")
    parser.add_argument("--no-control", action="store_true", help="leave out the controls")
    parser.add_argument("--out", type=Path, default=Path("outputs/strategy-matrix"), help="where results go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
