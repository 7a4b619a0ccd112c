"""Loads a data set as two tensors of normalised pictures: one to train on, one to test on."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

Pixels = np.ndarray
"""uint8 or float32, shape (N, C, H, W)."""

EMPTY_CHANNEL_STD = 1e-3
"""Smallest divisor in the normalisation: a channel that is the same everywhere must not blow up."""


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show.

    Attributes:
        images: float32, shape (N, C, H, W), each channel normalised.
        labels: int64, shape (N,), from 0 up.
    """

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class DataBundle:
    """A data set, ready to use. `load` hands the same one to every caller: do not change it in place."""

    train: Pictures
    test: Pictures
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one picture."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class _Source:
    """One half of a data set before any picture is decoded: all labels, and pictures on demand."""

    labels: np.ndarray
    decode: Callable[[np.ndarray], Pixels]


@lru_cache(maxsize=2)
def load(
    name: str, data_root: str = "", *, seed: int, max_train: int = 0, download: bool = False
) -> DataBundle:
    """Load a data set; a repeated call in the same process costs nothing.

    Pictures are scaled to 0..1, then each channel is shifted and scaled by the mean and standard
    deviation of the training pictures.

    Args:
        name: One of `DATASETS`.
        data_root: Folder of the data; "digits" comes with scikit-learn and needs none.
        seed: Decides the train/test split of "digits", and which pictures ``max_train`` keeps.
        max_train: Keep about this many training pictures, in equal share of every class; 0 keeps all.
        download: Allow torchvision to fetch a data set that is not in ``data_root``.

    Raises:
        ValueError: For an unknown name, a negative ``max_train``, or files with unsuitable content.
        FileNotFoundError: If the data is not in ``data_root``.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown dataset '{name}': the known ones are {', '.join(DATASETS)}{hint}")
    if max_train < 0:
        raise ValueError(f"max-train-examples must be 0 (all) or more, got {max_train}")
    train, test = DATASETS[name](name, data_root, seed, download)
    for part, source in (("training", train), ("test", test)):
        if not len(source.labels) or source.labels.min() < 0:
            raise ValueError(f"{name}: the {part} set is empty or has labels below 0 (unlabelled pictures)")
    chosen = stratified_subset(train.labels, max_train, seed)
    train_pixels, test_pixels = train.decode(chosen), test.decode(np.arange(len(test.labels)))
    if train_pixels.shape[1:] != test_pixels.shape[1:]:
        raise ValueError(
            f"{name}: training pictures are {train_pixels.shape[1:]}, test pictures {test_pixels.shape[1:]} "
            "(channels, height, width); they must agree"
        )
    train_images, test_images = _normalise(train_pixels, test_pixels)
    return DataBundle(
        Pictures(train_images, torch.from_numpy(train.labels[chosen])),
        Pictures(test_images, torch.from_numpy(test.labels)),
        num_classes=1 + int(max(train.labels.max(), test.labels.max())),
    )


def stratified_subset(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Ascending indices of ``size`` samples (0: all), every class in proportion to its share."""
    if size == 0 or size >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    # Each sample's rank within its shuffled class, as a fraction: the lowest fractions of all classes
    # together are an equal share of each.
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(rank, kind="stable")[:size])


def _normalise(train: Pixels, test: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    images = [torch.from_numpy(p).float() for p in (train, test)]
    if train.dtype == np.uint8:
        images = [x.div_(255) for x in images]
    mean = images[0].mean(dim=(0, 2, 3), keepdim=True)
    std = images[0].std(dim=(0, 2, 3), keepdim=True).clamp_min(EMPTY_CHANNEL_STD)
    train_images, test_images = (x.sub_(mean).div_(std) for x in images)
    return train_images, test_images


# --------------------------------------------------------------------------- digits
def _digits(name: str, data_root: str, seed: int, download: bool) -> tuple[_Source, _Source]:
    """The 1,797 scanned digits of 8x8 pixels that scikit-learn carries, 80 % of them to train on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    halves = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    train, test = (_in_memory(pixels[np.sort(h)], labels[np.sort(h)]) for h in halves)
    return train, test


def _in_memory(pixels: Pixels, labels: np.ndarray) -> _Source:
    return _Source(labels, lambda chosen: pixels[chosen])


# --------------------------------------------------------------------------- parquet
def _parquet(name: str, data_root: str, seed: int, download: bool) -> tuple[_Source, _Source]:
    """A folder laid out as on the Hugging Face hub: train*.parquet and test*.parquet, here or in data/."""
    if not data_root:
        raise FileNotFoundError("dataset 'parquet' needs a folder: set the run-config key data-root")
    root = Path(data_root).expanduser()
    train, test = (_parquet_split(root, split) for split in ("train", "test"))
    return train, test


def _parquet_split(root: Path, split: str) -> _Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(root.glob(f"{split}*.parquet")) or sorted((root / "data").glob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"no {split}*.parquet in {root.absolute()} or its folder data/; "
            "point the run-config key data-root at the folder that has them"
        )
    schema = pq.read_schema(files[0])
    image = _column(files[0], schema.names, ("img", "image"))
    label = _column(files[0], schema.names, ("label", "labels", "fine_label"))
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or "bytes" not in [field.name for field in kind]:
        raise ValueError(f"{files[0]}: column '{image}' must be a struct with a field 'bytes', got {kind}")

    def read(column: str) -> pa.ChunkedArray:
        return pa.concat_tables([pq.read_table(f, columns=[column]) for f in files])[column]

    def decode(chosen: np.ndarray) -> Pixels:
        encoded = read(image).take(pa.array(chosen)).to_pylist()
        return _decode_pictures([row and row["bytes"] for row in encoded], files[0].parent / f"{split}*")

    return _Source(read(label).to_numpy().astype(np.int64), decode)


def _column(file: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"{file}: needs a column named {' or '.join(wanted)}, has {', '.join(names)}")


def _decode_pictures(encoded: list[bytes | None], where: Path) -> Pixels:
    """Decode PNG or JPEG bytes; grey if the first picture is grey, colour otherwise."""
    from PIL import Image

    mode, size = "", (0, 0)
    decoded: list[np.ndarray] = []
    for data in encoded:
        if not data:
            raise ValueError(f"{where}: a row has no picture bytes (only a path?); embed the pictures")
        with Image.open(io.BytesIO(data)) as picture:
            if not decoded:
                mode, size = "L" if picture.mode in ("L", "1") else "RGB", picture.size
            if picture.size != size:
                raise ValueError(
                    f"{where}: pictures must share one size, got {picture.size} after {size} "
                    "(width, height); resize them first"
                )
            decoded.append(np.asarray(picture.convert(mode)))
    pixels = np.stack(decoded)
    return pixels[:, None] if mode == "L" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


# --------------------------------------------------------------------------- torchvision
TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def _torchvision(name: str, data_root: str, seed: int, download: bool) -> tuple[_Source, _Source]:
    if not data_root:
        raise FileNotFoundError(f"dataset '{name}' needs a folder: set the run-config key data-root")
    train, test = (_torchvision_split(name, Path(data_root).expanduser(), t, download) for t in (True, False))
    return train, test


def _torchvision_split(name: str, root: Path, train: bool, download: bool) -> _Source:
    from filelock import FileLock
    from torchvision import datasets

    cls = getattr(datasets, TORCHVISION_CLASSES[name])
    if download:
        root.mkdir(parents=True, exist_ok=True)
        # The simulated clients are processes of their own: one fetches, the others wait and find it.
        with FileLock(root / ".download.lock"):
            found = cls(root, train=train, download=True)
    else:
        try:
            found = cls(root, train=train, download=False)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no {name} (torchvision's {cls.__name__}) in {root.absolute()}; put it there, "
                "or set the run-config key download to true"
            ) from error
    pixels = np.asarray(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return _in_memory(pixels, np.asarray(found.targets, np.int64))


DATASETS: dict[str, Callable[[str, str, int, bool], tuple[_Source, _Source]]] = {
    "digits": _digits,
    "parquet": _parquet,
    **dict.fromkeys(TORCHVISION_CLASSES, _torchvision),
}
"""The data sets by name, each with the function that opens its training and test half."""
