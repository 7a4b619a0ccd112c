"""What is lost when the reference Fisher is estimated from a part of its samples: a table and a picture.

Trains the quickstart's network once, centrally. For every class to forget, every share and every seed, the
reference is estimated, and an update with a fixed threshold is built from it and tried on the test set.

    python -m simulations.figures.reference_share                                         # digits, seconds
    python -m simulations.figures.reference_share --data ~/cifar10 --max-examples 20000   # CIFAR-10
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.figures import BLUE, GREEN, VERMILLION
from fl_unlearn.fisher import fisher_diagonal
from fl_unlearn.types import REST, signature_of
from fl_unlearn.verify import score_state
from simulations.quickstart.fl_unlearn_quickstart import task
from simulations.quickstart.fl_unlearn_quickstart.data import DataBundle, load

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
COLUMNS = {
    "label": "class",
    "share": "share",
    "seed": "seed",
    "seconds": "seconds",
    "error": "relative error of F_reference",
    "overlap": "overlap of the selected elements (Jaccard)",
    "forgotten": "forgotten accuracy",
    "retained": "retained accuracy",
}
SUMMARY = {
    "share": "share",
    "seconds": "seconds",
    "error": "error of F_reference, %: mean",
    "error_worst": "worst",
    "overlap": "overlap, %: mean",
    "overlap_worst": "worst",
    "forgotten": "forgotten, %: mean",
    "forgotten_worst": "worst",
    "retained": "retained, %: mean",
    "retained_worst": "worst",
}


def main() -> None:
    """Measure, and write table.csv, table.md and the picture."""
    options = _options()
    name = "parquet" if options.data else "digits"
    bundle = load(name, options.data, seed=0, max_train=options.max_examples)
    model = trained(bundle, options.epochs, options.lr)
    rows = []
    for label in options.classes:
        rows += measure(model, bundle, label, options.shares, options.seeds, options.scope, options.threshold)
        print(f"class {label}: {len(rows)} rows", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    text = table(summarise(rows))
    (options.out / "table.md").write_text(text + "\n")
    draw(rows).savefig(options.out / "reference_share.png", dpi=150)
    print(f"{text}\n\nWritten to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="folder with train*.parquet and test*.parquet; '': digits")
    parser.add_argument("--max-examples", type=int, default=0, help="training pictures; 0: every one")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=list(range(10)), help="each forgotten alone"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="shares of the reference")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each share")
    parser.add_argument("--scope", default="head", help="Fisher scope")
    parser.add_argument("--threshold", type=float, default=5.0, help="the t of FIUn")
    parser.add_argument("--epochs", type=int, default=15, help="of training")
    parser.add_argument("--lr", type=float, default=0.05, help="of training")
    parser.add_argument("--out", type=Path, default=Path("outputs/reference-share"), help="where to write")
    return parser.parse_args()


def trained(bundle: DataBundle, epochs: int, lr: float) -> nn.Module:
    """The quickstart's network, trained on all training pictures; the same for the same arguments."""
    model = task.build_model(bundle.image_shape, bundle.num_classes, seed=0)
    data = TensorDataset(bundle.train.images, bundle.train.labels)
    batches: task.Loader = DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator())
    task.train(model, batches, epochs=epochs, lr=lr, momentum=0.9, weight_decay=5e-4, device="cpu", seed=0)
    return model.eval()


def measure(
    model: nn.Module,
    bundle: DataBundle,
    label: int,
    shares: Sequence[float],
    seeds: int,
    scope: str,
    threshold: float,
) -> list[dict[str, Any]]:
    """One row per share and seed for one class to forget; a share of 1 is drawn once.

    Returns:
        Rows with the keys of `COLUMNS`; accuracies, error and overlap are shares of 1.
    """
    train: task.Loader = DataLoader(TensorDataset(bundle.train.images, bundle.train.labels), batch_size=256)
    test: task.Loader = DataLoader(TensorDataset(bundle.test.images, bundle.test.labels), batch_size=512)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    signature = signature_of(state)
    whole: tuple[dict[str, Tensor], set[tuple[str, int]]] | None = None
    rows = []
    for share, seed in [(1.0, 0), *((s, k) for s in shares if s < 1 for k in range(seeds))]:
        model.load_state_dict(state)
        started = time.perf_counter()
        sums = fisher_diagonal(
            model, train, scope=scope, keep_classes=[label], reference_share=share, seed=seed
        )
        seconds = time.perf_counter() - started
        reference = sums.mean([REST])
        update = build_update(sums.mean([label]), reference, threshold=threshold, signature=signature)
        chosen = selected(update)
        whole = whole or (reference, chosen)
        scores = score_state(model, apply_update(state, update), test)
        rows.append(
            {
                "label": label,
                "share": share,
                "seed": seed,
                "seconds": seconds,
                "error": _relative_error(reference, whole[0]),
                "overlap": len(chosen & whole[1]) / max(1, len(chosen | whole[1])),
                "forgotten": scores.accuracy([label]),
                "retained": scores.accuracy(without=[label]),
            }
        )
    model.load_state_dict(state)
    return rows


def selected(update: DampeningUpdate) -> set[tuple[str, int]]:
    """Name and position of every element that an update changes."""
    return {(name, i) for name, entry in update.entries.items() for i in entry.indices.tolist()}


def _relative_error(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Euclidean norm of the difference by that of ``b``, all parameters together."""
    off = sum(float((a[n] - b[n]).square().sum()) for n in b)
    return float((off / sum(float(b[n].square().sum()) for n in b)) ** 0.5)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One row per share: means over classes and draws, and the worst of them."""
    out = []
    for share in sorted({float(r["share"]) for r in rows}, reverse=True):
        own = [r for r in rows if r["share"] == share]
        row = {"share": share, "seconds": fmean(r["seconds"] for r in own)}
        for name, worst in (("error", max), ("overlap", min), ("forgotten", max), ("retained", min)):
            row |= {name: fmean(r[name] for r in own), f"{name}_worst": worst(r[name] for r in own)}
        out.append(row)
    return out


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """The summary as Markdown."""
    lines = ["| " + " | ".join(SUMMARY.values()) + " |", "|" + " --- |" * len(SUMMARY)]
    for row in rows:
        cells = [f"{row['share']:g}", f"{row['seconds']:.3f}"]
        cells += [f"{100 * row[name]:.1f}" for name in list(SUMMARY)[2:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels over the share: error, overlap, accuracies; a dot per class and draw, a line of means."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("Relative error of F_reference, %", {"error": BLUE}),
        ("Overlap of the selected elements, %", {"overlap": BLUE}),
        ("Test accuracy after the update, %", {"forgotten": VERMILLION, "retained": GREEN}),
    )
    means = summarise(rows)
    for ax, (title, series) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, colour in series.items():
            ax.plot([r["share"] for r in rows], [100 * r[name] for r in rows], ".", color=colour, alpha=0.25)
            ax.plot(
                [r["share"] for r in means], [100 * r[name] for r in means], "-o", color=colour, label=name
            )
        ax.set_xscale("log")
        shares = [r["share"] for r in means]
        ax.set_xticks(shares, [f"{s:g}" for s in shares], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("share of the retained samples")
        ax.set_title(title, fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            ax.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
