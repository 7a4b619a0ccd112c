"""Labelled texts as a data set of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import TensorDataset

from simulations.datasets.bundle import Bundle, DatasetError, Inputs, Part
from simulations.datasets.request import Request
from simulations.datasets.tokens import count_words, encode
from simulations.quickstart.fl_unlearn_quickstart.data import stratified_subset


@dataclass(frozen=True)
class Texts:
    """Texts and what they are about.

    Attributes:
        labels: int64, shape (N,), from 0 up.
        read: The texts of these rows, in this order.
    """

    labels: np.ndarray
    read: Callable[[np.ndarray], Iterable[str]]


def bundle(train: Texts, test: Texts, classes: Sequence[str], request: Request, what: str) -> Bundle:
    """A data set of at most as many texts as the request wants, tokenised as `tokens` describes.

    The vocabulary is counted on the training texts that are kept, and on no other.

    Raises:
        DatasetError: If no training text has a single word.
    """
    chosen = stratified_subset(train.labels, request.max_train, request.seed)
    words = count_words(train.read(chosen), request.tokens, request.vocabulary)
    if not words:
        raise DatasetError(f"{request.name}: all {len(chosen)} training texts are empty; set text_columns")
    parts = []
    for half, rows in (
        (train, chosen),
        (test, stratified_subset(test.labels, request.max_test, request.seed)),
    ):
        ids, labels = (
            encode(half.read(rows), len(rows), request.tokens, words),
            torch.from_numpy(half.labels[rows]),
        )
        parts.append(Part(TensorDataset(ids, labels), labels))
    about = f"{what}: the first {request.tokens} words and punctuation marks of each text"
    inputs = Inputs((request.tokens,), vocabulary=len(words) + 2)
    return Bundle(parts[0], parts[1], len(classes), inputs, about, tuple(classes))


def places(labels: Sequence[object], classes: Sequence[object], where: str) -> np.ndarray:
    """The position of every label among the classes.

    Args:
        labels: One for each text; None for an unlabelled one.
        classes: Those of the training texts.
        where: Where the labels are from, for the error.

    Returns:
        int64, shape (N,).

    Raises:
        DatasetError: If a label is missing or is not among the classes.
    """
    place = {name: label for label, name in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in place:
            raise DatasetError(
                f"{where}: the label of row {row} is {label!r}, not one of the training texts' classes, "
                f"{', '.join(map(str, classes[:10]))}{', ...' * (len(classes) > 10)}; remove or label it"
            )
    return np.array([place[label] for label in labels], np.int64)
