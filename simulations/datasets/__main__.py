"""Prints what a data set is: ``python -m simulations.datasets NAME --root FOLDER``; --download fetches it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from simulations.datasets import DATASETS, Bundle, DatasetError, load


def main(arguments: list[str] | None = None) -> int:
    """Print it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.datasets", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--root", default="", help="folder of its files")
    for option, value in (
        ("seed", 0), ("max-train", 0), ("max-test", 0), ("image-size", 0), ("tokens", 64),
        ("vocabulary", 20_000),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=int, default=value, help="default %(default)s")
    parser.add_argument("--download", action="store_true", help="fetch it if it is not there")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        bundle = load(given.pop("name"), given.pop("root"), **given)
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(bundle))
    return 0


def describe(bundle: Bundle) -> str:
    """What it is, its shapes, how many samples each class has, and the first three training samples."""
    lines = [bundle.about, f"input: {bundle.inputs.shape}, vocabulary {bundle.inputs.vocabulary}"]
    counts = [
        torch.bincount(part.labels, minlength=bundle.num_classes) for part in (bundle.train, bundle.test)
    ]
    lines.append(f"{'class':<30}{'train':>10}{'test':>10}")
    for label in range(bundle.num_classes):
        name = f"{label} {bundle.classes[label] if bundle.classes else ''}"
        lines.append(f"{name:<30}{int(counts[0][label]):>10}{int(counts[1][label]):>10}")
    lines.append(f"{'all':<30}{int(counts[0].sum()):>10}{int(counts[1].sum()):>10}")
    for index in range(3):
        values, label = bundle.train.samples[index]
        shown = (
            " ".join(str(int(v)) for v in values[:20])
            if bundle.inputs.vocabulary
            else f"mean {values.mean():.2f}, from {values.min():.2f} to {values.max():.2f}"
        )
        lines.append(f"sample {index}: class {int(label)}: {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
