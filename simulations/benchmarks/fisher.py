"""Exact Fisher diagonals, measured: beside a forward and backward pass, torch.func, BackPACK and Opacus.

python -m simulations.benchmarks.fisher                                  # a quarter of an hour
python -m simulations.benchmarks.fisher --cases mlp,lstm --repeats 3     # a look

Random inputs, networks in eval mode; times are per batch, of a call that goes over a few. They are medians
over rounds in which all methods take turns in one process, and a ratio is the median of the rounds' ratios.
"One batch only" shows what a call costs once: it looks at the network and compares itself with autograd.
Memory is what one run needs beyond network and inputs, in a fresh process per method. "-" is a library that
cannot do the network, with the reason below. "differs" compares with ours: the largest deviation by the
largest value, over parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from simulations.benchmarks.fisher_cases import CASES
from simulations.benchmarks.fisher_methods import METHODS

HEAD_AIM, SPEEDUP_AIM = 1.05, 6.0
"""Head's time by a forward pass, at most; all layers' time in the faster of the rivals', at least."""
RIVALS = ("torch_func", "backpack")

Result = dict[str, Any]


# --------------------------------------------------------------------------- arithmetic
def ratio(times: Result, above: str, below: str) -> float | None:
    """Median over rounds of one method's time by another's; None if either did not run."""
    if "seconds" not in times.get(above, {}) or "seconds" not in times.get(below, {}):
        return None
    pairs = zip(times[above]["seconds"], times[below]["seconds"], strict=True)
    return float(median(a / b for a, b in pairs))


def judge(case: str, times: Result) -> dict[str, Result]:
    """The aims that can be judged by these times: value, aim, and whether it is met."""
    rivals = [r for name in RIVALS if (r := ratio(times, name, "ours_all")) is not None]
    values = {
        "head_over_forward": (ratio(times, "ours_head", "forward"), HEAD_AIM),
        "all_over_forward_backward": (ratio(times, "ours_all", "forward_backward"), CASES[case].aim),
        "speedup_over_better_rival": (min(rivals, default=None), SPEEDUP_AIM),
    }
    judged = {}
    for name, (value, aim) in values.items():
        if value is not None:
            met = value >= aim if name.startswith("speedup") else value <= aim
            judged[name] = {"value": value, "aim": aim, "met": met}
    return judged


# --------------------------------------------------------------------------- running
def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _part(what: str, case: str, threads: int, device: str, **options: Any) -> Result:
    """`fisher_part` in a fresh process."""
    command = [sys.executable, "-m", "simulations.benchmarks.fisher_part", what, case]
    command += ["--threads", str(threads), "--device", device]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[2:])} failed with status {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(case: str, batch: int, batches: int, repeats: int, places: Sequence[tuple[str, int]]) -> Result:
    """One network everywhere.

    Args:
        case: Its name in `fisher_cases.CASES`.
        batch: Samples in a batch.
        batches: Batches in a call.
        repeats: Rounds.
        places: Device and threads.

    Returns:
        JSON values: ``counts`` as `fisher_part.count` gives them, and ``places``, each with ``times`` as
        `fisher_part.times` gives them, ``peak_bytes`` by method, and ``aims`` as `judge` gives them.

    Raises:
        RuntimeError: If a process fails.
    """
    result: Result = {"about": CASES[case].about, "batch": batch, "batches": batches, "places": []}
    size = {"batch": batch, "batches": batches}
    result["counts"] = _part("count", case, 1, "cpu", batch=batch)
    for device, threads in places:
        times = _part("times", case, threads, device, **size, repeats=repeats)
        peaks = {
            name: _part("memory", case, threads, device, **size, methods=name)["peak_bytes"]
            for name, of in times.items()
            if "seconds" in of
        }
        place = {"device": device, "threads": threads, "times": times, "peak_bytes": peaks}
        result["places"].append({**place, "aims": judge(case, times)})
    return result


# --------------------------------------------------------------------------- for people
def table(result: Result) -> str:
    """One network's measurements as lines of text."""
    counts = result["counts"]
    lines = [
        f"{result['about']}; {result['batches']} batches of {result['batch']}",
        f"{counts['parameters'] / 1e6:.2f} M parameters; forward + backward "
        f"{counts['forward_backward_flops'] / 1e9:.1f} GFLOP; per-sample gradients "
        f"{counts['gradient_elements'] / 1e6:,.0f} M numbers, {counts['gradient_elements'] * 4 / 1e9:.2f} GB",
    ]
    for place in result["places"]:
        where = "CUDA" if place["device"] == "cuda" else f"{place['threads']} thread(s)"
        lines.append(
            f"\n{where:42}{'ms':>10}{'of forward':>12}{'of fwd + bwd':>14}{'peak MB':>10}{'differs':>10}"
        )
        reasons = []
        for name, times in place["times"].items():
            title = METHODS[name].title
            if "reason" in times:
                lines.append(f"{title:42}{'-':>10}")
                reasons.append(f"  {title}: {times['reason']}")
                continue
            forward, both = (ratio(place["times"], name, base) for base in ("forward", "forward_backward"))
            differs = f"{times['difference']:.0e}" if "difference" in times else ""
            lines.append(
                f"{title:42}{times['median'] * 1e3:>10.1f}{forward:>12.2f}{both:>14.2f}"
                f"{place['peak_bytes'][name] / 1e6:>10.0f}{differs:>10}"
            )
        lines += reasons
        for name, of in place["aims"].items():
            verdict = "met" if of["met"] else "missed"
            lines.append(f"  {name.replace('_', ' ')}: {of['value']:.2f}, aim {of['aim']}: {verdict}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print one table a network, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name in CASES if name != "tiny"]
    parser.add_argument(
        "--cases", default=",".join(usual), help=f"of {', '.join(CASES)}; default: all but tiny"
    )
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch; default: 64")
    parser.add_argument("--batches", type=int, default=4, help="batches in a call; default: 4")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; default: 5")
    parser.add_argument(
        "--json", type=Path, default=Path("outputs/bench/fisher.json"), help="where it is written"
    )
    options = parser.parse_args()
    cases = options.cases.split(",")
    unknown = [name for name in cases if name not in CASES]
    if unknown or min(options.batch, options.batches, options.repeats) < 1:
        parser.error(
            f"no case {unknown}" if unknown else "--batch, --batches and --repeats must be 1 or more"
        )
    places = [("cpu", threads) for threads in sorted({1, cores()})]
    if torch.cuda.is_available():
        places.append(("cuda", cores()))
    machine = {"cores": cores(), "system": platform.platform(), "torch": torch.__version__}
    machine["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    report: Result = {"machine": machine, "load_before": os.getloadavg()[0], "cases": {}}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in cases:
        print(f"\nmeasuring {name} ...", flush=True)
        report["cases"][name] = measure(name, options.batch, options.batches, options.repeats, places)
        print(f"\n{name}: {table(report['cases'][name])}", flush=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")  # an interrupted run keeps what it has
    print(f"\nwritten to {options.json}")


if __name__ == "__main__":
    main()
