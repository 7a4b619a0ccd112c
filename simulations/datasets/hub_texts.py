"""Texts through the `datasets` library: files in a folder, a saved data set, or one of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from simulations.datasets.bundle import Bundle, DatasetError
from simulations.datasets.request import Request
from simulations.datasets.texts import Texts, bundle, places

YAHOO_ON_THE_HUB = "community-datasets/yahoo_answers_topics"
YAHOO_TEXT = ("question_title", "question_content", "best_answer")
TEXT_COLUMNS = (("text",), ("sentence",), ("content",), YAHOO_TEXT, ("question",))
"""Where texts are looked for, the first that a data set has; those of several columns are joined."""

LABEL_COLUMNS = ("label", "labels", "topic", "category", "class")
TEST_SPLITS = ("test", "validation", "valid", "val", "dev")
FORMATS = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "json"}
"""Ending of a file to the reader of the `datasets` library."""


def yahoo(request: Request) -> Bundle:
    """Yahoo! Answers topics: question, explanation and best answer as one text; 10 classes.

    Raises:
        DatasetError: As `text` does.
    """
    if not request.root and request.download:
        request = replace(request, root=YAHOO_ON_THE_HUB)
    columns = request.text_columns or YAHOO_TEXT
    request = replace(request, text_columns=columns, label_column=request.label_column or "topic")
    return _load(request, "Yahoo! Answers topics")


def text(request: Request) -> Bundle:
    """Any labelled texts that are in parts to train and to test on.

    ``root`` is a folder with train*.parquet and test*.parquet (or .csv, .json, .jsonl), in it or in one
    folder below; or one written by ``DatasetDict.save_to_disk``; or, if downloading is allowed, a hub path.

    Raises:
        DatasetError: If files, a part, columns or labels are missing, or the parts have different labels.
    """
    return _load(request, f"texts of {Path(request.root).name}")


def _load(request: Request, what: str) -> Bundle:
    splits = _splits(request)
    test_name = next((name for name in TEST_SPLITS if name in splits), None)
    if "train" not in splits or test_name is None:
        raise DatasetError(
            f"{request.root}: needs part 'train' and one of {', '.join(TEST_SPLITS)}; has {', '.join(splits)}"
        )
    train, test = splits["train"], splits[test_name]
    columns = request.text_columns or _text_columns(train.column_names, request.root)
    label = request.label_column or _label_column(train.column_names, request.root)
    for name, split in (("train", train), (test_name, test)):
        _check(split, columns, label, f"{request.root}, part '{name}'")
    names, classes = _classes(train, label)
    halves = [
        Texts(
            places(split[label][:], classes, f"{request.root}, part '{name}', column '{label}'"),
            _Reader(split, columns),
        )
        for name, split in (("train", train), (test_name, test))
    ]
    return bundle(halves[0], halves[1], names, request, what)


class _Reader:
    """Reads the texts of some rows, a thousand at a time."""

    def __init__(self, split: Any, columns: Sequence[str]) -> None:
        self._split = split.select_columns(list(columns))

    def __call__(self, rows: np.ndarray) -> Iterator[str]:
        for batch in self._split.select(rows).iter(1000):
            for parts in zip(*batch.values(), strict=True):
                yield " ".join(part for part in parts if part)


def _splits(request: Request) -> dict[str, Any]:
    """Every part of the data set by name."""
    import datasets

    root = Path(request.root).expanduser()
    try:
        if request.root and root.is_dir():
            if (root / "dataset_dict.json").is_file():
                return dict(datasets.load_from_disk(str(root)))
            return dict(datasets.load_dataset(**_files(root)))
        if request.root and request.download:
            return dict(datasets.load_dataset(request.root))
    except DatasetError:
        raise
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise DatasetError(f"{request.root}: the 'datasets' library cannot read it: {cause}") from error
    raise DatasetError(
        f"data set '{request.name}': "
        + (f"there is no folder {root.absolute()}" if request.root else "no folder was given as root")
        + "; name one with train*.parquet and test*.parquet (or .csv, .json, .jsonl, or a saved DatasetDict) "
        "or a path on the Hugging Face hub together with download = true"
    )


def _files(root: Path) -> dict[str, Any]:
    """What `datasets.load_dataset` must be told to read the files in a folder, or in one folder below it."""
    for ending, reader in FORMATS.items():
        for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
            found = {
                split: [escape(str(file)) for file in sorted(folder.glob(f"{split}*.{ending}"))]
                for split in ("train", *TEST_SPLITS)
            }
            if found["train"]:
                return {"path": reader, "data_files": {name: files for name, files in found.items() if files}}
    raise DatasetError(
        f"no train*.parquet, .csv, .json or .jsonl in {root.absolute()} or in a folder of it"
        + ("; save a DatasetDict, not one part of it" if (root / "state.json").is_file() else "")
    )


def _text_columns(names: list[str], root: str) -> tuple[str, ...]:
    for columns in TEXT_COLUMNS:
        if set(columns) <= set(names):
            return columns
    raise DatasetError(f"{root}: which column is the text, of {', '.join(names)}? Set text_columns")


def _label_column(names: list[str], root: str) -> str:
    for column in LABEL_COLUMNS:
        if column in names:
            return column
    raise DatasetError(f"{root}: which column is the label, of {', '.join(names)}? Set label_column")


def _check(split: Any, columns: Sequence[str], label: str, where: str) -> None:
    for column in (*columns, label):
        if column not in split.column_names:
            raise DatasetError(f"{where}: has no column '{column}', only {', '.join(split.column_names)}")
    for column in columns:
        kind = str(getattr(split.features[column], "dtype", split.features[column]))
        if kind not in ("string", "large_string", "null"):
            raise DatasetError(f"{where}: column '{column}' must hold texts, not {kind}; set text_columns")
    kind = str(getattr(split.features[label], "dtype", split.features[label]))
    if not kind.startswith(("int", "uint", "string", "large_string")):
        raise DatasetError(
            f"{where}: column '{label}' must hold whole numbers or names, not {kind} (unlabelled "
            "texts?); set label_column"
        )


def _classes(train: Any, label: str) -> tuple[list[str], list[Any]]:
    """The name of every class, and the value that stands for it in the label column."""
    names = getattr(train.features[label], "names", None)
    if names is not None:
        return list(names), list(range(len(names)))
    values = sorted({value for value in train.unique(label) if value not in (None, "", -1)})
    return [str(value) for value in values], values
