"""Small pictures that fit into memory: digits, CIFAR, MNIST, and folders in the Hugging Face hub's layout."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import center_crop, resize

from simulations.datasets.bundle import Bundle, DatasetError, Inputs, Part
from simulations.datasets.request import Request
from simulations.quickstart.fl_unlearn_quickstart import data as quickstart

MAX_BYTES = 8 * 2**30
"""Most memory that enlarged pictures may take."""

ABOUT = {
    "digits": "scikit-learn's 1,797 scanned digits of 8x8 pixels, 80 % to train on",
    "parquet": "pictures of the folder {root}",
    "mnist": "MNIST, handwritten digits",
    "fashion-mnist": "Fashion-MNIST, pictures of clothes",
    "cifar10": "CIFAR-10, photographs of 10 classes",
    "cifar100": "CIFAR-100, photographs of 100 classes",
}
"""What each of them is; the reading is the quickstart's."""


def load(request: Request) -> Bundle:
    """Load pictures through the quickstart's readers: each channel has mean 0 and deviation 1 in training.

    Raises:
        DatasetError: If the files are missing or unsuitable.
    """
    if request.name != "digits" and not request.root:
        raise DatasetError(f"data set '{request.name}' needs a folder with its files: none was given as root")
    try:
        data = quickstart.load(
            request.name,
            request.root,
            seed=request.seed,
            max_train=request.max_train,
            download=request.download,
        )
    except (ValueError, FileNotFoundError) as error:
        raise DatasetError(str(error)) from error
    labels = data.test.labels
    kept = quickstart.stratified_subset(labels.numpy(), request.max_test, request.seed)
    train, test = data.train.images, data.test.images
    if len(kept) < len(labels):
        test, labels = test[kept], labels[kept]
    if request.image_size and train.shape[2:] != (request.image_size, request.image_size):
        train, test = _resized(train, test, request)
    return Bundle(
        Part(TensorDataset(train, data.train.labels), data.train.labels),
        Part(TensorDataset(test, labels), labels),
        data.num_classes,
        Inputs(tuple(train.shape[1:])),
        ABOUT[request.name].format(root=Path(request.root).name),
    )


def _resized(train: Tensor, test: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """Shorter edge to the wished size, the middle cut out; normalised anew: averages spread less."""
    size = request.image_size
    needed = 4 * (len(train) + len(test)) * train.shape[1] * size * size
    if needed > MAX_BYTES:
        raise DatasetError(
            f"{request.name}: {len(train) + len(test)} pictures of {size}x{size} pixels take "
            f"{needed / 2**30:.0f} GiB, over the limit of {MAX_BYTES / 2**30:.0f}; lower max_train, max_test "
            "or image_size"
        )
    train, test = (center_crop(resize(x, [size], antialias=True), [size, size]) for x in (train, test))
    mean = train.mean(dim=(0, 2, 3), keepdim=True)
    std = train.std(dim=(0, 2, 3), keepdim=True).clamp_min(quickstart.EMPTY_CHANNEL_STD)
    return (train - mean) / std, (test - mean) / std
