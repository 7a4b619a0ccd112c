"""Serving a class request from the clients' ledgers beside computing it from their data; what filling costs.

Each client has its share of CIFAR-10, and a ResNet-18. For every scope it evaluates the model bare, evaluates
it while its ledger is filled, computes a request's Fisher from its data, and answers it from the ledger.

    python -m simulations.benchmarks.ledger --data ~/cifar10                      # all 50,000 pictures
    python -m simulations.benchmarks.ledger --data ~/cifar10 --max-examples 200   # a look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher_ledger import FisherLedger
from simulations.quickstart.fl_unlearn_quickstart.data import Pictures, load

CLASSES, FORGOTTEN = 10, 3
STEPS = {
    "evaluate": "evaluation",
    "fill": "evaluation that fills the ledger",
    "compute": "request from the data",
    "serve": "request from the ledger",
}

Say = Callable[[str], None]
Batches = Iterable[tuple[Tensor, Tensor]]


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train*.parquet and test*.parquet")
    parser.add_argument("--max-examples", type=int, default=0, help="training pictures in all; 0: every one")
    parser.add_argument("--clients", type=int, default=10, help="how many clients share them")
    parser.add_argument("--scopes", nargs="+", default=["head", "all"], help="Fisher scopes")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch has it")
    parser.add_argument("--folder", type=Path, help="where the ledgers go; default: a temporary folder")
    parser.add_argument(
        "--json", type=Path, default=Path("outputs/bench/ledger.json"), help="where it is written"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pictures = load("parquet", options.data, seed=0, max_train=options.max_examples).train
    result = {
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "torch": torch.__version__,
        },
        **measure(resnet18(), pictures, options.clients, options.scopes, options.batch, options.folder),
    }
    print("\n" + table(result))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2))
    print(f"\nwritten to {options.json}")


def resnet18() -> nn.Module:
    """torchvision's, with ten classes, untrained: its values do not matter to the seconds."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = resnet18(num_classes=CLASSES)
    return model.eval()


def measure(
    model: nn.Module,
    pictures: Pictures,
    clients: int,
    scopes: Sequence[str],
    batch: int,
    folder: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Every client's seconds for every step and scope.

    Args:
        model: In evaluation mode.
        pictures: Shared out evenly and at random.
        clients: How many clients there are.
        scopes: Fisher scopes.
        batch: Pictures in a batch.
        folder: Where the ledgers go, one after the other; default: a temporary folder.
        say: Told about each client.

    Returns:
        Seconds by scope, step and client, the largest entry's bytes, and the largest relative difference
        between the two answers; JSON-able.
    """
    order = torch.randperm(len(pictures.labels), generator=torch.Generator().manual_seed(0))
    scales = {s: {"seconds": {step: [] for step in STEPS}, "bytes": 0, "difference": 0.0} for s in scopes}
    result: dict[str, Any] = {"clients": clients, "examples": len(order), "batch": batch, "scopes": scales}
    for client, rows in enumerate(order.tensor_split(clients)):
        data = TensorDataset(pictures.images[rows], pictures.labels[rows])
        batches = DataLoader(data, batch_size=batch)
        for scope, noted in result["scopes"].items():
            with tempfile.TemporaryDirectory(dir=folder) as name:
                _measure_client(model, batches, scope, Path(name), noted)
            shown = ", ".join(f"{step} {noted['seconds'][step][-1]:.2f} s" for step in STEPS)
            say(f"client {client + 1} of {clients}, {scope}: {shown}")
    return result


def _measure_client(
    model: nn.Module, batches: DataLoader[Any], scope: str, folder: Path, noted: dict[str, Any]
) -> None:
    ledger = FisherLedger(folder, "the client's data", max_bytes=2**40)

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        outcome = work()
        noted["seconds"][step].append(time.perf_counter() - started)
        return outcome

    def fill() -> int:
        return _evaluate(ledger.collect(model, scopes=[scope]), batches)

    def bare() -> int:
        return _evaluate(nullcontext(lambda x, y: model(x)), batches)

    assert timed("evaluate", bare) == timed("fill", fill)
    computed = timed(
        "compute", lambda: fisher_diagonal(model, batches, scope=scope, keep_classes=[FORGOTTEN])
    )
    kept, held = timed("serve", lambda: ledger.answer(model, _no_data, classes=[FORGOTTEN], scope=scope))
    assert held
    noted["bytes"] = max(noted["bytes"], *(f.stat().st_size for f in folder.iterdir()))
    noted["difference"] = max(noted["difference"], difference(kept, computed))


@torch.no_grad()
def _evaluate(how: AbstractContextManager[Callable[[Tensor, Tensor], Tensor]], batches: Batches) -> int:
    """How many pictures are classified correctly."""
    with how as forward:
        return sum(int((forward(x, y).argmax(1) == y).sum()) for x, y in batches)


def _no_data() -> NoReturn:
    raise AssertionError("the ledger holds, so the data must not be asked for")


def difference(a: FisherSums, b: FisherSums) -> float:
    """Largest difference of an element, relative to the largest of its tensor; counts must agree."""
    assert a.counts == b.counts
    pairs = [(a.sums[g][n], b.sums[g][n]) for g in b.sums for n in b.names]
    return max(float((x - y).abs().max() / y.max().clamp_min(1e-300)) for x, y in pairs)


def table(result: dict[str, Any]) -> str:
    """For people."""
    clients = result["clients"]
    lines = [
        f"CIFAR-10, {result['examples']:,} pictures, ResNet-18, {clients} clients",
        f"{'':<40}{'s a client':>12}{'s in all':>12}{'of evaluation':>16}",
    ]
    for scope, noted in result["scopes"].items():
        total = {step: sum(noted["seconds"][step]) for step in STEPS}
        for step, words in STEPS.items():
            share = total[step] / total["evaluate"]
            lines.append(
                f"{scope + ': ' + words:<40}{total[step] / clients:>12.3f}{total[step]:>12.2f}{share:>15.2f}x"
            )
        lines.append(
            f"  the ledger answers {total['compute'] / total['serve']:,.0f} times faster; "
            f"{noted['bytes'] / 1e6:,.1f} MB on disk; answers differ by {noted['difference']:.1e} at most"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
