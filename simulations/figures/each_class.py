"""Forget one class (or set of classes) after another, each from the same trained federation; make a table.

Trains the quickstart once through `flwr run`, then serves every request on a copy of the finished run's
store, without training. With ``--holders`` the partition depends on what is forgotten, so each request gets a
training of its own. Requests whose report is there already are not repeated.

    python -m simulations.figures.each_class                               # digits, ten classes in turn
    python -m simulations.figures.each_class --holders 2 1,9 3,5,8         # held by different clients
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.local_flower import LocalFlower, RunFailedError, Value

APP = Path(__file__).parents[1] / "quickstart"
COLUMNS = {
    "classes": "classes",
    "threshold": "t",
    "forget_before": "forgotten: before",
    "forget_after": "after",
    "forget_after_worst": "worst checkpoint",
    "retain_before": "retained: before",
    "retain_after": "after ",
    "retain_drop": "drop",
    "retain_drop_worst": "worst checkpoint ",
    "retrained_forget": "retrained: forgotten",
    "retrained_retain": "retained",
    "forget_client_seconds": "client s: forget",
    "retrain_client_seconds": "retrain",
    "client_ratio": "ratio",
    "forget_wall_seconds": "wall s: forget",
    "train_wall_seconds": "train",
    "wall_ratio": "ratio ",
}


def main() -> int:
    """Run it; returns the exit status."""
    options = _options()
    out = options.out.absolute()
    shared: dict[str, Value] = {k: _value(v) for k, _, v in (s.partition("=") for s in options.set)}
    try:
        _same_options(out, {**shared, "holders": options.holders, "retrain": options.retrain})
        with LocalFlower(options.clients, quiet=True) as flower:
            for done, classes in enumerate(options.classes):
                print(f"[{done + 1}/{len(options.classes)}] forgetting {classes}", flush=True)
                _serve(flower, out, classes, options, shared)
    except (RunFailedError, ValueError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    rows = [row_of(json.loads((_folder(out, c) / "report.json").read_text())) for c in options.classes]
    write_table(rows, out)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classes", nargs="*", default=[str(c) for c in range(10)], help='such as 0 3 "1,9"')
    parser.add_argument("--out", type=Path, default=Path("outputs/each-class"), help="where everything goes")
    parser.add_argument(
        "--holders", type=int, default=0, help="clients that hold each class; 0 = as it falls"
    )
    parser.add_argument("--retrain", action="store_true", help="also retrain without each, for comparison")
    parser.add_argument("--clients", type=int, default=10, help="how many clients to simulate")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="run-config keys to override"
    )
    return parser.parse_args()


def _same_options(out: Path, options: Mapping[str, Value]) -> None:
    """Remember the options in ``out``, so that results of other options are never taken for theirs."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "options.json", json.dumps(options, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{out} holds results of other options ({path.read_text()}); name another --out")
    path.write_text(text)


def _serve(
    flower: LocalFlower, out: Path, classes: str, options: argparse.Namespace, shared: Mapping[str, Value]
) -> None:
    folder = _folder(out, classes)
    if (folder / "report.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    request: dict[str, Value] = {
        "forget-classes": classes,
        "retrain": options.retrain,
        "out-dir": str(folder),
    }
    if options.holders:
        flower.run(APP, {**shared, **request, "holders": options.holders})
        return
    trained = out / "trained"
    if not (out / "trained.ok").is_file():
        shutil.rmtree(trained, ignore_errors=True)
        print("training once", flush=True)
        flower.run(APP, {**shared, "forget-classes": "", "out-dir": str(trained)})
        (out / "trained.ok").touch()
    flower.run(APP, {**shared, **request, "resume-from": str(trained), "num-server-rounds": 0})


def _folder(out: Path, classes: str) -> Path:
    return out / f"forget-{classes.replace(',', '-')}"


def row_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table from one report; accuracies 0 to 1, None where not measured."""
    final, cost, retrained = report["final"], report["cost"], report["retrained"] or {}
    hit = [m for m in report["models"] if m["affected"]]
    drops = [
        m["retain_accuracy_before"] - m["retain_accuracy_after"]
        for m in hit
        if None not in (m["retain_accuracy_before"], m["retain_accuracy_after"])
    ]
    row = {
        "classes": ",".join(str(c) for c in report["request"]["classes"]),
        "threshold": report["threshold"],
        "forget_before": final["forget_accuracy_before"],
        "forget_after": final["forget_accuracy_after"],
        "forget_after_worst": max((m["forget_accuracy_after"] or 0.0 for m in hit), default=None),
        "retain_before": final["retain_accuracy_before"],
        "retain_after": final["retain_accuracy_after"],
        "retain_drop": final["retain_accuracy_before"] - final["retain_accuracy_after"],
        "retain_drop_worst": max(drops, default=None),
        "retrained_forget": retrained.get("forget_accuracy"),
        "retrained_retain": retrained.get("retain_accuracy"),
    }
    names = ("forget_client_seconds", "retrain_client_seconds", "forget_wall_seconds", "train_wall_seconds")
    row |= {name: cost[name] for name in names}
    row["client_ratio"] = _ratio(row["retrain_client_seconds"], row["forget_client_seconds"])
    row["wall_ratio"] = _ratio(row["train_wall_seconds"], row["forget_wall_seconds"])
    return {name: row[name] for name in COLUMNS}


def write_table(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write ``table.csv`` and ``table.md``, and print the latter."""
    with open(out / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(v.strip() for v in COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(n, row[n]) for n in COLUMNS) + " |" for row in rows]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + f"\n\nWritten to {out / 'table.csv'} and {out / 'table.md'}")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.startswith(("forget_", "retain_", "retrained_")) and not name.endswith("seconds"):
        return f"{100 * value:.1f}"
    if name.endswith("ratio"):
        return f"{value:.0f}x"
    return (
        f"{value:.2f}"
        if name.endswith("seconds")
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _value(text: str) -> Value:
    try:
        value: Value = json.loads(text)
    except ValueError:
        return text
    return value


if __name__ == "__main__":
    sys.exit(main())
