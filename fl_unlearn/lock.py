"""One writer at a time in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

from fl_unlearn.types import StoreError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; there, one writer is up to the operator
    fcntl = None  # type: ignore[assignment]


class StoreBusyError(StoreError):
    """Another process is writing to the store."""


def lock_folder(folder: Path, wait: float) -> IO[str]:
    """Keep other processes from writing here; the system lets go of it when this one ends, however it does.

    Raises:
        StoreBusyError: If another writer still has it after ``wait`` seconds.
    """
    file = open(folder / ".lock", "w")  # noqa: SIM115 (held until the store is closed)
    deadline = time.monotonic() + wait
    while fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as e:
            if time.monotonic() >= deadline:
                file.close()
                raise StoreBusyError(
                    f"{folder} is being written by another run; wait until it is over, or open it read-only"
                ) from e
            time.sleep(0.05)
    return file
