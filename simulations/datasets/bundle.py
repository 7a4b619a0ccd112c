"""A data set as the scenarios use it: pictures or token ids, a part to train on and a part to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset


class DatasetError(ValueError):
    """A data set that cannot be loaded: a wrong name or setting, or missing or unsuitable files."""


@dataclass(frozen=True)
class Inputs:
    """What a model is fed.

    Attributes:
        shape: Of one sample: (channels, height, width) of a picture, (tokens,) of a text.
        vocabulary: How many token ids there are, 0 being padding; 0 for pictures.
    """

    shape: tuple[int, ...]
    vocabulary: int = 0


@dataclass(frozen=True)
class Part:
    """Samples that are used together.

    Attributes:
        samples: A map-style data set of (input, label): a `TensorDataset` where they fit into memory. Inputs
            are normalised float32 pictures (channels, height, width), or int64 token ids (tokens,).
        labels: int64, shape (N,), from 0 up.
    """

    samples: Dataset[Any]
    labels: Tensor

    def rows(self, chosen: np.ndarray) -> Dataset[Any]:
        """The samples with these positions, in this order."""
        if isinstance(self.samples, TensorDataset):
            where = torch.from_numpy(np.asarray(chosen, np.int64))
            return TensorDataset(*(t[where] for t in self.samples.tensors))
        return Subset(self.samples, [int(i) for i in chosen])


@dataclass(frozen=True)
class Bundle:
    """A data set.

    Attributes:
        train: To train on.
        test: To measure on; nobody trains on it.
        num_classes: Labels are below it.
        inputs: What a model is fed.
        about: What it is and where it comes from, for tables; says so if it is synthetic.
        classes: The name of every label, in their order; empty where the files name none.
    """

    train: Part
    test: Part
    num_classes: int
    inputs: Inputs
    about: str = ""
    classes: tuple[str, ...] = ()
