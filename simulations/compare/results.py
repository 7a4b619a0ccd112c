"""The results of comparisons: one tidy row per seed, strategy and metric; read from and written to files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fl_unlearn.files import write_atomically
from fl_unlearn.metrics.contract import Column

SCHEMA_VERSION = "1.0"

ORIGINAL, RETRAIN = "original", "retrain"
"""The model before forgetting, which is listed among the strategies; and the yardstick."""

COST = (
    Column(
        "client-seconds",
        "client compute",
        "s",
        "low",
        "Computing time of all clients; on a CPU, processor time.",
    ),
    Column("bytes-down", "bytes down", "bytes", "low", "Tensors sent to clients."),
    Column("bytes-up", "bytes up", "bytes", "low", "Tensors sent by clients."),
    Column("rounds", "rounds", "", "low", "How often clients were asked and waited for."),
    Column("wall-seconds", "wall", "s", "low", "From the request to the new model, clients in turn."),
)
"""What a strategy cost; beside the metrics' columns."""

CHECKPOINT = (
    Column(
        "checkpoints-forget",
        "checkpoints: forgotten, worst",
        "%",
        "low",
        "Highest held-out accuracy of an earlier global model on the forgotten classes, changed alike.",
        1.0,
    ),
    Column(
        "checkpoints-drop",
        "checkpoints: drop, worst",
        "%",
        "low",
        "Most that an earlier global model lost of its accuracy on the rest by the same change.",
        1.0,
    ),
)
"""What a strategy makes of the run's earlier global models, where it changes them too; held-out samples."""


@dataclass(frozen=True)
class Row:
    """One value.

    Attributes:
        strategy: Name of the strategy, or "original".
        seed: Seed of the federation.
        key: Which column (``class-<label>``: held-out accuracy on one class).
        value: The value; None: there is none.
        samples: How many samples it rests on; 0 for costs.
        why: Why there is no value.
    """

    strategy: str
    seed: int
    key: str
    value: float | None
    samples: int = 0
    why: str = ""


@dataclass(frozen=True)
class Graph:
    """The UMIG of the first seed's run.

    Attributes:
        nodes: Name to (kind, round, owner or "", whether it inherits from what is to be forgotten).
        edges: (parent, child) by name.
    """

    nodes: Mapping[str, tuple[str, int, str, bool]] = field(default_factory=dict)
    edges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One table: every strategy on one setting.

    Attributes:
        name: The setting's name.
        setting: Its values, by kebab-case key.
        request: What was to be forgotten, as `ForgetRequest.to_json`.
        columns: All columns, in order.
        strategies: Name to its paper, in order; "original" first.
        rows: The values.
        facts: Strategy to seed to what it reports of itself.
        refused: Strategy to why it did not run, or changed nothing, with any seed; the reason of the first.
        graph: The UMIG.
    """

    name: str
    setting: Mapping[str, Any]
    request: Mapping[str, Any]
    columns: tuple[Column, ...]
    strategies: Mapping[str, str]
    rows: tuple[Row, ...]
    facts: Mapping[str, Mapping[int, Mapping[str, str | int | float]]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    graph: Graph = field(default_factory=Graph)

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({r.seed for r in self.rows})

    @property
    def labels(self) -> list[int]:
        """The classes, ascending."""
        return sorted({int(r.key.removeprefix("class-")) for r in self.rows if r.key.startswith("class-")})

    def values(self, strategy: str, key: str) -> list[float]:
        """The values over the seeds."""
        found = (r for r in self.rows if (r.strategy, r.key) == (strategy, key))
        return [r.value for r in found if r.value is not None]

    def mean(self, strategy: str, key: str) -> tuple[float, float] | None:
        """Mean and sample deviation over the seeds (0 for one seed); None without a value."""
        values = self.values(strategy, key)
        return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None

    def why(self, strategy: str, key: str) -> str:
        """Why there is no value."""
        reasons = (r.why for r in self.rows if (r.strategy, r.key) == (strategy, key) and r.why)
        return next(reasons, self.refused.get(strategy, "not measured"))


def write_json(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write comparisons to one JSON file."""
    plain = {"schema_version": SCHEMA_VERSION, "comparisons": [asdict(c) for c in comparisons]}
    write_atomically(path, json.dumps(plain, indent=1).encode())


def read_json(path: Path) -> list[Comparison]:
    """Read what `write_json` wrote.

    Raises:
        ValueError: If it is of another version.
    """
    plain = json.loads(path.read_text())
    if plain.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version must be {SCHEMA_VERSION}, got {plain.get('schema_version')!r}"
        )
    return [_comparison(c) for c in plain["comparisons"]]


def _comparison(plain: dict[str, Any]) -> Comparison:
    graph = plain["graph"]
    nodes = {n: (str(v[0]), int(v[1]), str(v[2]), bool(v[3])) for n, v in graph["nodes"].items()}
    return Comparison(
        **{
            **plain,
            "columns": tuple(Column(**c) for c in plain["columns"]),
            "rows": tuple(Row(**r) for r in plain["rows"]),
            "facts": {s: {int(k): v for k, v in by.items()} for s, by in plain["facts"].items()},
            "graph": Graph(nodes, tuple((a, b) for a, b in graph["edges"])),
        }
    )


def write_csv(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write one tidy row per comparison, strategy, seed and metric."""
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("comparison", "strategy", "seed", "metric", "value", "samples", "why"))
        for c in comparisons:
            for r in c.rows:
                value = "" if r.value is None else r.value
                writer.writerow((c.name, r.strategy, r.seed, r.key, value, r.samples, r.why))
