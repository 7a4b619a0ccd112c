"""Folders of picture files: ImageNet's layout, and TinyImageNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from simulations.datasets.bundle import Bundle, DatasetError
from simulations.datasets.picture_files import Listing, bundle
from simulations.datasets.request import Request

IMAGE_FOLDER_SIZE = 224
"""Pixels of an edge in `image_folder` unless the request names another."""

TINY_IMAGENET_SIZE = 64
"""Pixels of an edge of TinyImageNet's pictures."""


def image_folder(request: Request) -> Bundle:
    """A folder as ImageNet is kept: train/CLASS/* to train on, val/CLASS/* (or test/CLASS/*) to test on.

    Labels are the places of the class folders' names in ascending order.

    Raises:
        DatasetError: If a folder is missing or empty, or the two parts have different classes.
    """
    root = request.folder("the folders train and val, each with one folder of pictures per class")
    classes, train = _listing(root / "train")
    test_folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    test_classes, test = _listing(test_folder)
    _same_classes(root / "train", classes, test_folder, test_classes)
    size = request.image_size or IMAGE_FOLDER_SIZE
    return bundle(train, test, classes, size, request, f"pictures of the folder {root.name}")


def tiny_imagenet(request: Request) -> Bundle:
    """TinyImageNet as it is distributed; its labelled part "val" is what to test on.

    Read are wnids.txt, train/CLASS/images/*, val/val_annotations.txt and val/images/*.

    Raises:
        DatasetError: If a file or folder is missing or empty, or the lists of classes disagree.
    """
    root = request.folder("TinyImageNet's wnids.txt, train and val")
    wnids = sorted(line.strip() for line in _lines(root / "wnids.txt"))
    classes, train = _listing(root / "train")
    _same_classes(root / "train", classes, root / "wnids.txt", wnids)
    test = _annotated(root / "val", classes)
    size = request.image_size or TINY_IMAGENET_SIZE
    return bundle(train, test, classes, size, request, "TinyImageNet")


def _listing(folder: Path) -> tuple[list[str], Listing]:
    """The classes, ascending, and the picture files of a folder with one folder per class."""
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder.absolute()}; it must hold one folder per class")
    try:
        classes, place = find_classes(str(folder))
        found = make_dataset(str(folder), place, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:  # torchvision names the classes without a picture
        raise DatasetError(f"{folder.absolute()}: {error}") from error
    return classes, Listing([Path(path) for path, _ in found], np.array([y for _, y in found], np.int64))


def _annotated(folder: Path, classes: list[str]) -> Listing:
    """The pictures of TinyImageNet's "val", labelled by a list: file name, tab, class, ..."""
    annotations = folder / "val_annotations.txt"
    place = {name: label for label, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(_lines(annotations), start=1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in place:
            raise DatasetError(
                f"{annotations}, line {number}: must be a file, a tab and a class of train/, got {line!r}"
            )
        path = folder / "images" / name
        if not path.is_file():
            raise DatasetError(f"{annotations}, line {number}: there is no file {path.absolute()}")
        paths.append(path)
        labels.append(place[rest[0]])
    if not paths:
        raise DatasetError(
            f"{annotations}: lists no picture; take the file that TinyImageNet is distributed with"
        )
    return Listing(paths, np.array(labels, np.int64))


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise DatasetError(f"there is no file {file.absolute()}; TinyImageNet is distributed with it")
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _same_classes(train: Path, classes: list[str], other: Path, others: list[str]) -> None:
    missing, extra = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if missing or extra:
        raise DatasetError(
            f"{train} and {other} must have the same classes: "
            f"{_some(missing)} only in the former, {_some(extra)} only in the latter"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
