"""Pictures in files of their own: decoded when they are used, or at once if all of them fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from simulations.datasets.bundle import Bundle, DatasetError, Inputs, Part
from simulations.datasets.request import Request
from simulations.quickstart.fl_unlearn_quickstart.data import EMPTY_CHANNEL_STD, stratified_subset

IN_MEMORY_BYTES = 2**30
"""Pictures that take no more than this as float32 are decoded once and kept."""

STATISTICS_SAMPLE = 1000
"""So many training pictures tell mean and deviation of the colours when not all are kept in memory."""


@dataclass(frozen=True)
class Listing:
    """Picture files and what they show.

    Attributes:
        paths: The files.
        labels: int64, shape (N,), from 0 up.
    """

    paths: list[Path]
    labels: np.ndarray

    def some(self, size: int, seed: int) -> Listing:
        """About this many of them, every class in proportion to its share; all of them if 0."""
        rows = stratified_subset(self.labels, size, seed)
        return Listing([self.paths[i] for i in rows], self.labels[rows])


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each colour, both of shape (3, 1, 1), of pixels in 0..1."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> Normalisation:
        """Measured on uint8 pictures of shape (N, 3, H, W)."""
        count = pixels.numel() // 3
        sums = torch.zeros(2, 3, dtype=torch.float64)
        for picture in pixels:  # one at a time: all of them as float64 would not fit
            x = picture.double().div_(255)
            sums += torch.stack([x.sum(dim=(1, 2)), x.square().sum(dim=(1, 2))])
        mean, square = sums / count
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(EMPTY_CHANNEL_STD)
        return cls(mean.float().view(3, 1, 1), std.float().view(3, 1, 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised float32 pictures, of uint8 ones."""
        return (pixels.float() / 255 - self.mean) / self.std


class PictureFiles(Dataset[tuple[Tensor, Tensor]]):
    """Decodes a picture each time it is asked for."""

    def __init__(self, listing: Listing, size: int, normalisation: Normalisation) -> None:
        self._paths = [str(path) for path in listing.paths]
        self._labels = torch.from_numpy(listing.labels)
        self._size = size
        self._normalisation = normalisation

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._normalisation(decode(Path(self._paths[index]), self._size)), self._labels[index]


def decode(path: Path, size: int) -> Tensor:
    """One picture in colour: the shorter edge made ``size`` long, the middle cut out.

    Grey, palette and CMYK pictures become RGB; transparency and a rotation noted in EXIF data are dropped, as
    torchvision does.

    Returns:
        uint8, shape (3, size, size).

    Raises:
        DatasetError: If the file is no picture, or is cut short.
    """
    try:
        with Image.open(path) as picture:
            transparent = picture.mode == "P" and "transparency" in picture.info
            # Pillow warns unless a palette with transparency goes by way of RGBA.
            colour = (picture.convert("RGBA") if transparent else picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{path}: cannot be read as a picture ({error}); replace or remove the file"
        ) from error
    pixels: Tensor = pil_to_tensor(center_crop(resize(colour, [size]), [size, size]))
    return pixels


def bundle(
    train: Listing, test: Listing, classes: list[str], size: int, request: Request, what: str
) -> Bundle:
    """A data set of these files, of at most as many pictures as the request wants.

    Colours are normalised by the training pictures: by all of them if they are kept in memory, otherwise by
    `STATISTICS_SAMPLE` of them, drawn in equal share of every class.

    Raises:
        DatasetError: If a picture that is decoded now cannot be read.
    """
    train, test = train.some(request.max_train, request.seed), test.some(request.max_test, request.seed)
    count = len(train.paths) + len(test.paths)
    if 4 * 3 * size * size * count <= IN_MEMORY_BYTES:
        pixels = _pixels(train, size)
        normalisation = Normalisation.of(pixels)
        parts = [_kept(pixels, train, normalisation), _kept(_pixels(test, size), test, normalisation)]
        measured = "all training pictures"
    else:
        sample = train.some(STATISTICS_SAMPLE, request.seed)
        normalisation = Normalisation.of(_pixels(sample, size))
        parts = [
            Part(PictureFiles(half, size, normalisation), torch.from_numpy(half.labels))
            for half in (train, test)
        ]
        measured = f"{len(sample.paths)} training pictures"
    about = f"{what}, {size}x{size} pixels, normalised by {measured}"
    return Bundle(parts[0], parts[1], len(classes), Inputs((3, size, size)), about, tuple(classes))


def _pixels(listing: Listing, size: int) -> Tensor:
    return torch.stack([decode(path, size) for path in listing.paths])


def _kept(pixels: Tensor, listing: Listing, normalisation: Normalisation) -> Part:
    labels = torch.from_numpy(listing.labels)
    return Part(TensorDataset(normalisation(pixels), labels), labels)
