"""One experiment's table, model by model, and the files of one and of several experiments."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_unlearn.files import write_atomically
from simulations.inheritance.results import BEFORE, RETRAINED, Result
from simulations.inheritance.summary import lines_of, markdown, number, row


def write_experiment(name: str, result: Result, folder: Path) -> None:
    """Write ``rows.csv`` and ``table.md`` beside ``result.json``."""
    rows = [
        (name, r.model, r.method, r.model in result.affected, _plain(r.forget), _plain(r.retained))
        for r in result.rows
    ]
    _write_csv(folder / "rows.csv", ("experiment", "model", "method", "affected", "forget", "retained"), rows)
    write_atomically(folder / "table.md", table(name, result).encode())


def write_summary(results: Mapping[str, Result], failed: Mapping[str, str], folder: Path) -> str:
    """Write ``summary.md``, which is returned, and ``summary.csv`` and ``summary.json``."""
    text = markdown(results, failed)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.md", text.encode())
    lines = [
        {**asdict(line), "forgets": line.forgets, "keeps": line.keeps, "faster": line.faster}
        for name, result in results.items()
        for line in lines_of(name, result)
    ]
    columns = list(lines[0]) if lines else []
    _write_csv(folder / "summary.csv", columns, [[_plain(v) for v in line.values()] for line in lines])
    plain = {
        "experiments": {name: asdict(result) for name, result in results.items()},
        "summary": lines,
        "failed": dict(failed),
    }
    write_atomically(folder / "summary.json", json.dumps(plain, indent=1).encode())
    return text


def table(name: str, result: Result) -> str:
    """One experiment in Markdown: every model before and after each method, and what that took."""
    c, methods = result.config, [BEFORE, *result.spent, *([RETRAINED] if result.retrain else [])]
    forget = ", ".join(str(label) for label in result.forget)
    out = [
        f"# {name}",
        "",
        f"{result.about['scenario']} Data: {result.about['data']}. Model: {c['model']} ({c['size']}). "
        f"To be forgotten: class{'es' if len(result.forget) > 1 else ''} {forget}.",
        "",
        ", ".join(f"{value:,} {what.replace('-', ' ')}" for what, value in result.sizes.items()) + ".",
        "",
        "Test accuracy in % on what is to be forgotten / on the other labels that the model has learned or "
        "inherited; - where it has none, or was not measured. Training and retraining: computing time of the "
        "owner, in seconds.",
        "",
        row(["model", *methods, "training", "retraining"]),
        row(["---", *["---:"] * (len(methods) + 2)]),
    ]
    for model in result.models:
        cells = []
        for method in methods:
            found = result.row(model, method)
            cells.append("" if found is None else f"{_percent(found.forget)} / {_percent(found.retained)}")
        times = [_seconds(times.get(model)) for times in (result.train, result.retrain)]
        out.append(row([model, *cells, *times]))
    out += ["", row(["method", "owners' seconds", "questions", "wall, s", "remarks"]), row(["---"] * 5)]
    for method, s in result.spent.items():
        said = [f"{k}: {v}" for k, v in s.facts.items()] + ([f"refused: {s.refused}"] if s.refused else [])
        out.append(row([method, f"{s.seconds:.3g}", str(s.rounds), f"{s.wall:.3g}", "; ".join(said)]))
    return "\n".join(out) + "\n"


def _percent(share: float | None) -> str:
    return number(None if share is None else 100 * share)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g}"


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode())
