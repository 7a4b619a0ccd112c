"""Forgetting deeper than the head: what is left of a class under each way to forget it, beside retraining.

Trains a small convolutional network by FedAvg (20,000 pictures of CIFAR-10, 5 clients; about 4 minutes of
one core), and once more without each class. Then, for every class and variant, on test pictures:

    forgotten, retained   accuracies of the final model
    probe                 accuracy on the forgotten class of a linear classifier of all classes, fitted to the
                          input of the head on a quarter of the training pictures
    relearn n             accuracy on the forgotten class after n steps of SGD (lr 0.05, momentum 0.9, batch
                          32) on 67 training pictures of every class, mean of two orders; from the head as it
                          is (a row that was removed is added anew) and from zeros in the class's row
    membership            attacks by loss and by entropy: training against test pictures of the class
    checkpoints           the same update, made from the final model, on the global model of every round

Everything made is kept in --out and not made twice; delete a file there to have it made again. Writes
measures.csv, tables.md and deeper.png.

    python -m simulations.figures.deeper --data ~/cifar10 --out outputs/deeper
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from fl_unlearn.types import UnlearnError

from .bench import Bench
from .measure import RETRAINED, Measures, Values
from .plot import draw
from .table import markdown, write_csv
from .train import add_arguments, setting_of, train_all
from .variants import VARIANTS


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return _run(options)
    except (UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.figures.deeper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    known = [*VARIANTS, RETRAINED]
    parser.add_argument(
        "--variants", nargs="*", default=known, choices=known, metavar="NAME", help=f"of: {', '.join(known)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="which federation")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    setting = setting_of(options)
    train_all(setting, options.out, options.classes if RETRAINED in options.variants else [], [options.seed])
    measures = Measures(
        Bench(setting, options.out, options.seed), options.out / "measures" / f"seed-{options.seed}"
    )
    results: dict[str, dict[int, Values]] = {name: {} for name in options.variants}
    for label in options.classes:
        for name in options.variants:
            started = time.perf_counter()
            values = results[name][label] = measures.of(name, label)
            print(
                f"{time.strftime('%H:%M:%S')} class {label}, {name}: forgotten {values['forgotten']:.1%}, "
                f"retained {-100 * values['retained drop']:+.1f} points, probe {values['probe']:.1%} "
                f"({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
    write_csv(results, options.out / "measures.csv")
    (options.out / "tables.md").write_text(markdown(results))
    draw(results, options.out / "deeper.png")
    print(markdown(results) + f"\nWritten to {options.out}: measures.csv, tables.md, deeper.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
