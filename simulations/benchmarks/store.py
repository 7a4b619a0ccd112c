"""The store, measured: its lineage beside networkx, and applying updates beside loops and copies.

python -m simulations.benchmarks.store                                   # about ten minutes, 30 GB of disk
python -m simulations.benchmarks.store --models 20 --rounds 100          # a look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from simulations.benchmarks import application, lineage

ROWS = (
    ("copying the files", "copy"),
    ("head-only update, loop of load, multiply, save", "loop_head"),
    ("head-only update, fl-unlearn", "ours_head"),
    ("all-layers update, loop of load, multiply, save", "loop_all"),
    ("all-layers update, fl-unlearn", "ours_all"),
)


def main() -> None:
    """Measure both, print one table each, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="checkpoints of a ResNet-18, 45 MB each")
    parser.add_argument("--rounds", type=int, default=1000, help="rounds of the lineage, 1,000 clients each")
    parser.add_argument("--clients", type=int, default=1000, help="clients in each round of the lineage")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument(
        "--json", type=Path, default=Path("outputs/bench/store.json"), help="where it is written"
    )
    arguments = parser.parse_args()
    result = {
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "lineage": lineage.measure(arguments.rounds, arguments.clients, arguments.folder),
        "application": application.measure(arguments.models, arguments.folder),
    }
    print("\n" + lineage.table(result["lineage"]))
    print("\n" + table(result["application"]))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2))
    print(f"\nwritten to {arguments.json}")


def table(result: dict[str, Any]) -> str:
    """The application's part, for people."""
    steps, copied = result["steps"], result["copy_megabytes_a_second"]
    lines = [
        f"{result['models']} checkpoints of a ResNet-18, {result['bytes'] / 1e9:.1f} GB, "
        f"{result['workers']} cores; copying goes at {copied:,.0f} MB/s",
        f"{'':50}{'seconds':>10}{'MB written':>14}{'MB/s of files':>16}{'of copying':>12}",
    ]
    for title, key in ROWS:
        seconds, written = steps[key]["seconds"], steps[key]["bytes"] / 1e6
        speed = result["bytes"] / 1e6 / seconds
        lines.append(f"{title:50}{seconds:>10.2f}{written:>14,.1f}{speed:>16,.0f}{speed / copied:>12.2f}")
    lines += [
        f"head-only: {result['head_speedup_over_loop']:.0f} times faster than the loop, "
        f"{result['head_share_of_bytes_written']:.2%} of its bytes written",
        f"all-layers: {result['all_speedup_over_loop']:.2f} times faster than the loop, "
        f"{result['all_seconds_over_copy']:.2f} times the seconds of copying",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
