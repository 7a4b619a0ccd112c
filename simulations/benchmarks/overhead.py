"""What recording costs a training run: the same federation with and without ``UnlearningStrategy``.

One `flwr run` per workload on the real simulation engine. Its server alternates blocks of rounds of FedAvg,
bare and wrapped, in the order ABBA so that a drift of the machine cancels, all from the same start and with
global checkpoints only (the default). A round's time runs from configure_train to the end of
aggregate_train; there is no evaluation, which would lengthen rounds and flatter the percentage. Flower's
simulation looks for replies every 0.1 s, which shows in round times; "server alone", the time inside the two
hooks, does not depend on that, nor on the clients.

A first block warms up and is not counted. The first round of each block is set apart: a wrapped run opens its
store, asks clients who they are and records the initial model there, once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.local_flower import LocalFlower, RunFailedError, Value

APP = Path(__file__).parent / "overhead_app"
AIM = 0.05
"""Share of the round time that recording should stay under."""

Block = dict[str, Any]
"""A line of blocks.jsonl, see the app's server."""


@dataclass(frozen=True)
class Workload:
    """What is trained: for how many clients, and how much of it by default."""

    about: str
    clients: int
    rounds: int
    blocks: int


WORKLOADS = {
    "digits": Workload("the quickstart: a small CNN on scikit-learn's digits, 2 local epochs", 10, 13, 6),
    "resnet18": Workload("torchvision's ResNet-18 on 32x32 noise, 20 local batches of 32", 2, 5, 4),
}


# --------------------------------------------------------------------------- arithmetic
def block_order(blocks: int) -> list[str]:
    """``blocks`` of each kind, in neighbouring pairs whose order alternates: bare, wrapped, wrapped, bare...

    A drift that is linear in time adds the same to both kinds when ``blocks`` is even.
    """
    pair = ["bare", "wrapped"]
    return [kind for i in range(blocks) for kind in (pair if i % 2 == 0 else pair[::-1])]


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, interpolated; a single value is all three."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median from order statistics, whatever the distribution.

    The interval reaches from the r-th smallest to the r-th largest value, with the largest r for which a
    binomial (n, 1/2) puts at most ``(1 - level) / 2`` below r; the whole range when there is no such r.
    """
    ordered, n = sorted(values), len(values)
    r, below = 0, 0.0
    # Logarithms, since neither n over r nor 2 to the n need fit a float.
    while (below := below + _binomial(n, r)) <= (1 - level) / 2:
        r += 1
    at = max(r - 1, 0)
    return ordered[at], ordered[n - 1 - at]


def _binomial(n: int, r: int) -> float:
    """Chance of r heads among n tosses."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1) - n * math.log(2))


def paired(blocks: Sequence[Block], key: str) -> Iterator[tuple[float, float]]:
    """(bare, wrapped) of the same round in neighbouring blocks, the first round left out."""
    bare, wrapped = ([b["rounds"] for b in blocks if b["kind"] == k] for k in ("bare", "wrapped"))
    for a, b in zip(bare, wrapped, strict=True):
        yield from ((x[key], y[key]) for x, y in zip(a[1:], b[1:], strict=True))


def compare(blocks: Sequence[Block], key: str) -> dict[str, Any]:
    """Bare against wrapped rounds by one of their times, in seconds and as a share of the bare median."""
    pairs = list(paired(blocks, key))
    bare, wrapped = quartiles([a for a, _ in pairs]), quartiles([b for _, b in pairs])
    differences = [b - a for a, b in pairs]
    return {
        "bare": bare,
        "wrapped": wrapped,
        "difference": quartiles(differences),
        "difference_95": list(median_interval(differences)),
        "pairs": len(pairs),
    }


def summarise(blocks: Sequence[Block]) -> dict[str, Any]:
    """All numbers of one workload; ``blocks`` without the warm-up.

    Returns:
        ``round`` and ``server`` as `compare` gives them (times in seconds, as [lower quartile, median, upper
        quartile]); ``overhead`` and ``server_overhead``: the median difference of either as a share of the
        median bare round; ``once_seconds``: what only a run's start costs; ``written_bytes`` and
        ``kept_bytes`` of a wrapped round.
    """
    bare, wrapped = ([b for b in blocks if b["kind"] == k] for k in ("bare", "wrapped"))
    round_, server = compare(blocks, "seconds"), compare(blocks, "server_seconds")
    usual = round_["bare"][1]
    first = [b["rounds"][0]["server_seconds"] for b in wrapped]
    once = [b["opening_seconds"] + f for b, f in zip(wrapped, first, strict=True)]
    written = [r["written_bytes"] for b in wrapped for r in b["rounds"][1:]]
    return {
        "clients": blocks[0]["clients"],
        "model_bytes": blocks[0]["model_bytes"],
        "blocks_of_each": len(bare),
        "rounds_in_a_block": len(blocks[0]["rounds"]),
        "round": round_,
        "server": server,
        "overhead": round_["difference"][1] / usual,
        "overhead_95": [d / usual for d in round_["difference_95"]],
        "server_overhead": server["difference"][1] / usual,
        "once_seconds": statistics.median(once) - server["wrapped"][1],
        "written_bytes": None if None in written else statistics.median(written),
        "kept_bytes": statistics.median(b["kept_bytes"] / (len(b["rounds"]) + 1) for b in wrapped),
    }


# --------------------------------------------------------------------------- running
def measure(name: str, rounds: int, blocks: int, folder: Path) -> list[Block]:
    """Run a workload; returns its blocks, the warm-up first.

    Raises:
        RunFailedError: If the run did not complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "blocks.jsonl"
    lines.write_text("")
    order = ["bare", *block_order(blocks)]
    config: dict[str, Value] = {
        "workload": name,
        "order": ",".join(order),
        "rounds": rounds,
        "out-dir": str(folder.absolute()),
    }
    shown = 0
    print(f"{name}: starting Flower, then {len(order)} blocks of {rounds} rounds", flush=True)
    # The engine is left first: once it has stopped, the thread that waits for its run ends too.
    with ThreadPoolExecutor(1) as pool, LocalFlower(WORKLOADS[name].clients, quiet=True) as flower:
        run = pool.submit(flower.run, APP, config)
        while True:
            over = run.done()
            done = [json.loads(line) for line in lines.read_text().split("\n")[:-1]]
            for block in done[shown:]:
                median = statistics.median(r["seconds"] for r in block["rounds"])
                what = "warm-up" if block["block"] == 0 else block["kind"]
                print(f"  {block['block'] + 1}/{len(order)} {what:<8} {median:.3f} s a round", flush=True)
            shown = len(done)
            if over:
                break
            time.sleep(0.5)
        run.result()
    return done


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    head = (
        "| workload | bare round, ms | wrapped round, ms | overhead, ms | overhead, % | server alone, ms (%) "
        "| written a round | once a run |"
    )
    rows = [head, "|" + "---|" * 8]
    for name, r in results.items():
        written = r["kept_bytes"] if r["written_bytes"] is None else r["written_bytes"]
        low, high = r["overhead_95"]
        cells = [
            f"{name}, {r['clients']} clients",
            _spread(r["round"]["bare"]),
            _spread(r["round"]["wrapped"]),
            _spread(r["round"]["difference"]),
            f"{100 * r['overhead']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{1000 * r['server']['difference'][1]:.1f} ({100 * r['server_overhead']:.1f})",
            f"{written / 1e6:.2f} MB",
            f"{1000 * r['once_seconds']:.0f} ms",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    low, median, high = (1000 * v for v in values)
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def main() -> int:
    """Measure, print the table, write the JSON; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all", help="default: all")
    parser.add_argument("--rounds", type=int, help="rounds in a block, at least 2; the first is set apart")
    parser.add_argument("--blocks", type=int, help="counted blocks of each kind, at least 1")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder to write to")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    options = parser.parse_args()
    if (options.rounds is not None and options.rounds < 2) or (
        options.blocks is not None and options.blocks < 1
    ):
        parser.error("--rounds must be at least 2 and --blocks at least 1")
    names = list(WORKLOADS) if options.workload == "all" else [options.workload]
    results, load = {}, os.getloadavg()[0]
    try:
        for name in names:
            usual = WORKLOADS[name]
            rounds, count = options.rounds or usual.rounds, options.blocks or usual.blocks
            blocks = measure(name, rounds, count, options.out / f"overhead-{name}")
            results[name] = {"about": usual.about, **summarise(blocks[1:])}
    except RunFailedError as e:
        print(f"the benchmark failed: {e}", file=sys.stderr)
        return 1
    report = {"aim": AIM, "cores": os.cpu_count(), "load_before": load, "workloads": results}
    path = options.out / "overhead.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if options.json else f"\n{table(results)}\n")
    if not options.json:
        print(
            "Medians, quartiles in brackets; overhead: of the same round in neighbouring blocks, in % of\n"
            f"the median bare round with the 95 % interval of the median. Aim: under {100 * AIM:.0f} %.\n"
            f"Load before: {load:.1f} on {os.cpu_count()} cores. Written to {path}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
