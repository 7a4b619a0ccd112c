"""Arrays from the other side: their bytes are read only when they are what they claim to be."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy

_HEADERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# torch knows larger unsigned integers by name only: it cannot compute with them.
_TYPES = frozenset(np.dtype(t) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"))


def read(array: Array) -> np.ndarray[Any, Any]:
    """The values of one array: writeable, contiguous, the caller's own.

    The header of the bytes is compared with the declared shape and with their number first, so that nothing
    is allocated for values that did not come. Nothing is ever unpickled or unzipped.

    Raises:
        ValueError: If the bytes are no plain numeric array of the declared shape.
        Exception: Whatever NumPy passes on from a tokenizer or an allocator.
    """
    if array.stype != "numpy.ndarray":
        raise ValueError(f"serialised as {array.stype[:50]!r}, not as 'numpy.ndarray'")
    stream = BytesIO(array.data)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"format {version}, known are {sorted(_HEADERS)}")
    shape, fortran, dtype = _HEADERS[version](stream)
    if tuple(shape) != tuple(array.shape) or any(n < 0 for n in shape):
        raise ValueError(f"holds {tuple(shape)}, declares {tuple(array.shape)}")
    if dtype not in _TYPES:
        raise ValueError(f"holds values of type {str(dtype)[:50]}; plain numbers are needed")
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(array.data) - start != size:
        raise ValueError(f"holds {len(array.data) - start} bytes of values, {size} are needed")
    flat = np.frombuffer(array.data, dtype, offset=start).copy()
    return np.ascontiguousarray(flat.reshape(shape[::-1]).T) if fortran else flat.reshape(shape)
