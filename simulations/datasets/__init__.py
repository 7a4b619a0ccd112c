"""Data sets for the scenarios, by name: pictures and texts, in a part to train on and one to test on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from simulations.datasets import folders, hub_texts, newsgroups, pictures
from simulations.datasets.bundle import Bundle, DatasetError, Inputs, Part
from simulations.datasets.request import Request

__all__ = ["DATASETS", "Bundle", "DatasetError", "Inputs", "Part", "load"]

DATASETS: dict[str, Callable[[Request], Bundle]] = {
    "digits": pictures.load,
    "mnist": pictures.load,
    "fashion-mnist": pictures.load,
    "cifar10": pictures.load,
    "cifar100": pictures.load,
    "parquet": pictures.load,
    "image-folder": folders.image_folder,
    "tiny-imagenet": folders.tiny_imagenet,
    "newsgroups": newsgroups.load,
    "reuters": newsgroups.load,
    "yahoo": hub_texts.yahoo,
    "text": hub_texts.text,
}
"""The data sets by name, each with the function that loads it."""


def load(
    name: str,
    root: str = "",
    *,
    seed: int = 0,
    max_train: int = 0,
    max_test: int = 0,
    image_size: int = 0,
    tokens: int = 64,
    vocabulary: int = 20_000,
    download: bool = False,
    text_columns: Sequence[str] = (),
    label_column: str = "",
) -> Bundle:
    """Load a data set; a repeated call in the same process gets the same one, so do not change it in place.

    Args:
        name: One of `DATASETS`.
        root: Folder of its files; "digits" needs none. "yahoo" and "text" also take a path on the Hugging
            Face hub, with ``download``.
        seed: Decides the train/test split of "digits", and which samples ``max_train`` and ``max_test`` keep.
        max_train: Keep about this many training samples, every class in proportion to its share; 0 keeps all.
        max_test: The same for the test part.
        image_size: Pictures only: height and width in pixels; 0 takes their own ("image-folder": 224).
        tokens: Texts only: each is cut or filled up to so many tokens.
        vocabulary: Texts only: most token ids, the two for padding and unknown tokens among them.
        download: Allow fetching files that are not in ``root``.
        text_columns: "yahoo" and "text" only: the columns that are joined to a text; empty finds them.
        label_column: "yahoo" and "text" only: the column that says the class; empty finds it.

    Raises:
        DatasetError: For an unknown name, a setting out of range, missing or unsuitable files, or a class
            that has no sample to train or to test on.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise DatasetError(f"unknown data set '{name}': the known ones are {', '.join(DATASETS)}{hint}")
    if isinstance(text_columns, str):
        raise DatasetError(f"{name}: text_columns is a list of names; write [{text_columns!r}]")
    # The working directory may change between two calls; a path on the hub stays as it is.
    there = Path(root).expanduser()
    root = str(there.absolute()) if root and there.exists() else root
    return _load(
        Request(
            name, root, seed, max_train, max_test, image_size, tokens, vocabulary, download,
            tuple(text_columns), label_column,
        )
    )  # fmt: skip


@lru_cache(maxsize=4)
def _load(request: Request) -> Bundle:
    bundle = DATASETS[request.name](request)
    if bundle.num_classes < 2:
        raise DatasetError(f"{request.name}: needs at least two classes, found {bundle.num_classes}")
    for use, part, limit in (("train", bundle.train, "max_train"), ("test", bundle.test, "max_test")):
        counts = torch.bincount(part.labels, minlength=bundle.num_classes)
        if not counts.all():
            empty = int((counts == 0).nonzero()[0])
            label = f"{empty} ('{bundle.classes[empty]}')" if bundle.classes else str(empty)
            raise DatasetError(
                f"{request.name}: no sample of class {label} to {use} on; "
                + (
                    f"raise {limit}"
                    if getattr(request, limit)
                    else "add some, or use data without that class"
                )
            )
    return bundle
