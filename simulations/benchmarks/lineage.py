"""The UMIG beside networkx: building the lineage of a federation, and finding what descends from a model.

The lineage has one initial model and, each round, one update per client, made from the last global model with
weight 1, and one aggregate of them. Both sides get the same nodes (name, kind, round, owner, examples). The
UMIG is written to a file, one durable transaction a round; networkx keeps its graph in memory. Each side runs
in a process of its own, so that one's memory is not counted for the other, and the UMIG is queried in another
process than the one that wrote it.

    python -m simulations.benchmarks.lineage                                # a million nodes; half a minute
    python -m simulations.benchmarks.lineage --rounds 100 --json lineage.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import networkx as nx
import numpy as np

from fl_unlearn.lineage import UMIG, NodeKind

ROWS = {
    "build_seconds": "building, s",
    "build_cpu_seconds": "building, s of processor time",
    "build_peak_mb": "peak memory of building, MB",
    "open_seconds": "opening, s",
    "descendants_first_seconds": "descendants, first query, s",
    "descendants_repeated_seconds": "descendants, again (median of 5), s",
    "stream_seconds": "all of them as nodes, in order, s",
    "query_peak_mb": "peak memory after the queries, MB",
    "file_mb": "file, MB",
}


def measure(rounds: int = 1000, clients: int = 1000, folder: Path | None = None) -> dict[str, Any]:
    """Run both sides, each in processes of its own.

    Args:
        rounds: Rounds of the federation.
        clients: Clients in each.
        folder: Where the UMIG's file is written meanwhile; the system's folder for temporary files if None.

    Returns:
        JSON values: sizes, versions, what each side took, and ``ratios``, networkx to UMIG. Memory is the
        highest resident set less what the process held after its imports, in 10^6 bytes.

    Raises:
        RuntimeError: If a side fails, or the two find other descendants.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / "lineage.sqlite"
        sizes = (str(rounds), str(clients))
        print(f"UMIG: {rounds} rounds of {clients} clients", file=sys.stderr)
        umig = _process("write", str(file), *sizes)
        umig["file_mb"] = file.stat().st_size / 1e6
        umig |= _process("query", str(file), *sizes)
        print("networkx: the same", file=sys.stderr)
        other = _process("networkx", str(file), *sizes)
    if umig.pop("found") != other["found"]:
        raise RuntimeError("the UMIG and networkx found other descendants; no comparison was made")
    return {
        "nodes": 1 + rounds * (clients + 1),
        "edges": 2 * rounds * clients,
        "descendants": other.pop("found")["count"],
        "umig": umig,
        "networkx": other,
        "ratios": {key: other[key] / value for key, value in umig.items() if other.get(key)},
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "numpy": np.__version__,
            "networkx": nx.__version__,
            "machine": platform.machine(),
        },
    }


def _process(*arguments: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        __name__ if __name__ != "__main__" else __spec__.name,
        "--part",
        *arguments,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the part '{arguments[0]}' failed with status {done.returncode}; see above")
    return dict(json.loads(done.stdout))


# --------------------------------------------------------------------------- in a process of its own
def _part(part: str, file: str, rounds: int, clients: int) -> dict[str, Any]:
    before = _resident("VmRSS")
    if part == "networkx":
        return _networkx(rounds, clients, before)
    return _write(file, rounds, clients, before) if part == "write" else _query(file, rounds, before)


def _rounds(rounds: int, clients: int) -> Iterator[tuple[int, list[str]]]:
    """Each round with the names of its updates; says how far it is."""
    for r in range(1, rounds + 1):
        yield r, [f"r{r:05d}-client-{i}" for i in range(clients)]
        if r % max(rounds // 10, 1) == 0:
            print(f"\r  {r}/{rounds} rounds", end="" if r < rounds else "\n", file=sys.stderr, flush=True)


def _write(file: str, rounds: int, clients: int, before: float) -> dict[str, Any]:
    owners, examples = [f"client-{i}" for i in range(clients)], list(range(100, 100 + clients))
    start = _times()
    with UMIG(file) as umig:
        umig.add("g0", kind=NodeKind.INITIAL, round=0)
        for r, names in _rounds(rounds, clients):
            above, shares = {f"g{r - 1}": 1.0}, dict.fromkeys(names, 1 / clients)
            with umig.transaction():
                umig.add_many(
                    names,
                    kind=NodeKind.CLIENT_UPDATE,
                    round=r,
                    parents=above,
                    owners=owners,
                    examples=examples,
                )
                umig.add(f"g{r}", kind=NodeKind.AGGREGATE, round=r, parents=shares)
    return _built(start, before)


def _query(file: str, rounds: int, before: float) -> dict[str, Any]:
    start = time.perf_counter()
    with UMIG(file, read_only=True) as umig:
        len(umig)
        opened = time.perf_counter() - start
        middle = f"g{rounds // 2}"
        times = [_seconds(lambda: umig.descendants([middle])) for _ in range(6)]
        start = time.perf_counter()
        found = _found(node.name for node in umig.descendants([middle]))
        streamed = time.perf_counter() - start
    return {
        "open_seconds": opened,
        **_descendants(times, streamed, before),
        "found": found,
    }


def _networkx(rounds: int, clients: int, before: float) -> dict[str, Any]:
    owners, examples = [f"client-{i}" for i in range(clients)], list(range(100, 100 + clients))
    start = _times()
    graph = nx.DiGraph()
    graph.add_node("g0", kind=NodeKind.INITIAL, round=0, owner=None, examples=None, order=0)
    for r, names in _rounds(rounds, clients):
        first, above = len(graph), f"g{r - 1}"
        for i, (name, owner, n) in enumerate(zip(names, owners, examples, strict=True), first):
            graph.add_node(name, kind=NodeKind.CLIENT_UPDATE, round=r, owner=owner, examples=n, order=i)
            graph.add_edge(above, name, weight=1.0)
        graph.add_node(f"g{r}", kind=NodeKind.AGGREGATE, round=r, owner=None, examples=None, order=len(graph))
        graph.add_weighted_edges_from((name, f"g{r}", 1 / clients) for name in names)
    built = _built(start, before)
    middle = f"g{rounds // 2}"
    times = [_seconds(lambda: nx.descendants(graph, middle)) for _ in range(6)]
    begun = time.perf_counter()
    reached = sorted(nx.descendants(graph, middle), key=lambda name: graph.nodes[name]["order"])
    found = _found(name for name in reached if graph.nodes[name])
    return {**built, **_descendants(times, time.perf_counter() - begun, before), "found": found}


def _times() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _built(start: tuple[float, float], before: float) -> dict[str, float]:
    wall, cpu = (now - then for now, then in zip(_times(), start, strict=True))
    return {"build_seconds": wall, "build_cpu_seconds": cpu, "build_peak_mb": _resident("VmHWM") - before}


def _descendants(times: list[float], streamed: float, before: float) -> dict[str, float]:
    return {
        "descendants_first_seconds": times[0],
        "descendants_repeated_seconds": median(times[1:]),
        "stream_seconds": streamed,
        "query_peak_mb": _resident("VmHWM") - before,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _found(names: Iterable[str]) -> dict[str, Any]:
    count, digest = 0, hashlib.sha256()
    for name in names:
        count += 1
        digest.update(name.encode())
    return {"count": count, "sha256": digest.hexdigest()}


def _resident(what: str) -> float:
    """Linux's resident set of this process in 10^6 bytes: now (VmRSS), or at its highest (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024 / 1e6


# --------------------------------------------------------------------------- from the shell
def table(result: dict[str, Any]) -> str:
    """The measurements as lines of text."""
    lines = [
        f"{result['nodes']:,} nodes, {result['edges']:,} edges, {result['descendants']:,} descendants",
        f"{'':38}{'UMIG':>10}{'networkx':>10}{'ratio':>8}",
    ]
    for key, title in ROWS.items():
        cells = [
            f"{result[side][key]:10.3f}" if key in result[side] else f"{'':10}"
            for side in ("umig", "networkx")
        ]
        ratio = f"{result['ratios'][key]:8.1f}" if key in result["ratios"] else ""
        lines.append(f"{title:38}{''.join(cells)}{ratio}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=1000, help="in each round")
    parser.add_argument("--folder", type=Path, help="where the UMIG's file is written (temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        part, file, rounds, clients = options.part
        print(json.dumps(_part(part, file, int(rounds), int(clients))))
        return 0
    if options.rounds < 1 or options.clients < 1:
        parser.error("--rounds and --clients must be 1 or more")
    result = measure(options.rounds, options.clients, options.folder)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
