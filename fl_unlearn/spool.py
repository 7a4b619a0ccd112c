"""Many vectors of one length, written to a temporary file: what needs all of them need not hold them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import torch

IN_MEMORY = 1 << 25  # bytes held before a file is made
_PIECE = 1 << 22  # values of all vectors together that are held at a time


class Spool:
    """Vectors of one length, kept in memory while they are few, and else in a file.

    The file is in the system's temporary folder (``TMPDIR``), has no name and vanishes with the process.

    Args:
        dtype: In what precision they are kept.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (closed by `close`)
        self._type = torch.zeros((), dtype=dtype).numpy().dtype
        self.length, self.count = 0, 0

    def append(self, vector: torch.Tensor) -> int:
        """Keep one vector; returns its number, from 0 up."""
        flat = vector.detach().cpu().numpy().astype(self._type).ravel()
        assert self.count == 0 or len(flat) == self.length
        self.length = len(flat)
        self._file.seek(self.count * flat.nbytes)
        self._file.write(flat.tobytes())
        self.count += 1
        return self.count - 1

    def row(self, number: int) -> torch.Tensor:
        """One vector, as float64."""
        return torch.from_numpy(self._read(number, 0, self.length).astype(np.float64))

    def columns(self, rows: list[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some vectors side by side, a piece of their length at a time.

        Yields:
            Which places, and their values: float64, of shape (number of rows, number of places).
        """
        step = max(1, _PIECE // max(1, len(rows)))
        for start in range(0, self.length, step):
            stop = min(start + step, self.length)
            piece = np.stack([self._read(r, start, stop) for r in rows]).astype(np.float64)
            yield slice(start, stop), torch.from_numpy(piece)

    def _read(self, number: int, start: int, stop: int) -> np.ndarray:
        size = self._type.itemsize
        self._file.seek((number * self.length + start) * size)
        return np.frombuffer(self._file.read((stop - start) * size), self._type)

    def close(self) -> None:
        """Give the memory and the disk back."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
