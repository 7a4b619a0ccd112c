"""Bytes that claim to be an array: of other types, shapes and values, damaged, pickled, zipped, or none."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from random import Random

import numpy as np
from flwr.app import Array

UNPICKLED: list[str] = []
"""Stays empty: what is pickled here would append to it."""


def spring(what: str) -> None:
    """What a pickle made here calls, by its name, when it is read."""
    UNPICKLED.append(what)


class Trap:
    """Tells when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return spring, ("unpickled",)


def npy(values: np.ndarray, *, pickled: bool = False) -> bytes:
    """An array as NumPy saves it."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=pickled)
    return stream.getvalue()


def header(shape: str, dtype: str = "'<f4'", fortran: str = "False", version: bytes = b"\x01\x00") -> bytes:
    """The beginning of an array's bytes, with any text as shape and type."""
    text = f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(1 << 24))
    return stream.getvalue()


BOMB = _bomb()
HUGE = ((1 << 40,), (1 << 20, 1 << 20), (1 << 62, 4), (10**9,), (0, 1 << 60), (-1,), (1 << 70,))
_TYPES = (
    "<f8",
    "<f2",
    ">f4",
    "<i4",
    "<i8",
    "|i1",
    "|u1",
    "|b1",
    "<c8",
    "<U3",
    "|S4",
    "<M8[s]",
    "<u2",
    "<f16",
    "V4",
)
_ODD = (float("nan"), float("inf"), -float("inf"), -1.0, -1e-30, -0.0, 1e38, 1e-45, 0.0, 3.5)
_F4 = "'<f4'"
_SHAPES = (
    "[3]", "(3,", "3", "(2.0,)", "(True,)", "(-1,)", "(1L,)", "(__import__('os'),)",
    "(" * 90 + "1" + ",)" * 90, "(1" + "+1" * 4000 + ",)",
)  # fmt: skip
_DESCRIPTIONS = (
    "[('a', '<f4'), ('b', 'O')]", "[('a', '<f4')]", "'(2,)f4'", "'O'", "'nonsense'", "'<f4'*1000000000",
    "'<f4', 'more': 1",
)  # fmt: skip
_HEADERS = (*((shape, _F4) for shape in _SHAPES), *(("(2,)", dtype) for dtype in _DESCRIPTIONS))


def values_of(array: Array) -> np.ndarray:
    """What a sound array holds."""
    values: np.ndarray = np.load(io.BytesIO(array.data), allow_pickle=False)
    return values


def _shape(array: Array) -> tuple[int, ...]:
    """The declared shape, unless an earlier change made it a huge one."""
    shape = tuple(array.shape)
    if any(not 0 <= n < 1000 for n in shape):
        raise ValueError(f"no array of shape {shape} can be made")
    return shape


def _declared(array: Array, data: bytes, values: np.ndarray | None = None) -> Array:
    shape = tuple(array.shape) if values is None else values.shape
    dtype = array.dtype if values is None else str(values.dtype)
    return Array(dtype=dtype, shape=shape, stype=array.stype, data=data)


def _element(random: Random, array: Array) -> Array:
    values = values_of(array).copy()
    if values.size:
        with np.errstate(all="ignore"):
            values.reshape(-1)[random.randrange(values.size)] = np.array(random.choice(_ODD)).astype(
                values.dtype
            )
    return _declared(array, npy(values))


def _scaled(random: Random, array: Array) -> Array:
    values = values_of(array)
    with np.errstate(all="ignore"):
        values = (values * random.choice((0, -1, 0.5, 2, 1e10, 1e30, 1e300))).astype(values.dtype)
    return _declared(array, npy(values))


def _typed(random: Random, array: Array) -> Array:
    dtype = np.dtype(random.choice(_TYPES))
    with np.errstate(all="ignore"):
        try:
            values = values_of(array).astype(dtype)
        except (TypeError, ValueError):
            values = np.zeros(_shape(array), dtype)
    return _declared(array, npy(values), values if random.random() < 0.5 else None)


def _reshaped(random: Random, array: Array) -> Array:
    values = values_of(array)
    values = random.choice(
        (values.reshape(-1), values[None], values[..., None], values.T, values.reshape(-1)[:-1], values[:0])
        if values.ndim
        else (values[None],)
    )
    return _declared(array, npy(np.ascontiguousarray(values)), values if random.random() < 0.5 else None)


def _fortran(random: Random, array: Array) -> Array:
    return _declared(array, npy(np.asfortranarray(values_of(array))))


def _structured(random: Random, array: Array) -> Array:
    values = np.zeros(_shape(array), [("a", "<f4"), ("b", random.choice(("<i4", "<U2", "<f8")))])
    return _declared(array, npy(values))


def _pickled(random: Random, array: Array) -> Array:
    values = np.empty(_shape(array) or (1,), object)
    values[...] = Trap()
    whole = npy(values, pickled=True)
    return _declared(array, random.choice((whole, pickle.dumps(Trap()), whole[:-3])))


def _zipped(random: Random, array: Array) -> Array:
    return _declared(array, random.choice((BOMB, BOMB[:-5], b"PK\x03\x04" + array.data)))


def _huge(random: Random, array: Array) -> Array:
    shape = random.choice(HUGE)
    version = random.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00"))
    begin = header(repr(shape), random.choice(("'<f4'", "'<f8'", "'|b1'")), version=version)
    declared = random.choice((shape, tuple(array.shape)))
    return Array(dtype=array.dtype, shape=declared, stype=array.stype, data=begin + array.data[-64:])


def _odd_header(random: Random, array: Array) -> Array:
    shape, dtype = random.choice(_HEADERS)
    begin = header(shape, dtype, random.choice(("False", "True", "0", "'x'")))
    return _declared(array, begin + array.data[128:])


def _declares(random: Random, array: Array) -> Array:
    shape = random.choice((*HUGE, (), (1,), (*array.shape, 1), tuple(array.shape)))
    dtype = random.choice(("float32", "object", "", "float64", "\x00", "O", "int99"))
    stype = random.choice(("numpy.ndarray", "numpy.ndarray", "", "pickle", "torch", "é" * 300))
    return Array(dtype=dtype, shape=shape, stype=stype, data=array.data)


def _damaged(random: Random, array: Array) -> Array:
    data = bytearray(array.data)
    match random.randrange(5):
        case 0:
            for _ in range(random.choice((1, 1, 4))):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        case 1:
            data[random.randrange(min(128, len(data)))] = random.randrange(256)
        case 2:
            del data[random.randrange(len(data)) :]
        case 3:
            data += random.randbytes(random.randint(1, 9))
        case _:
            data = bytearray(random.randbytes(random.randint(0, 200)))
    return _declared(array, bytes(data))


CHANGES: dict[str, Callable[[Random, Array], Array]] = {
    "array: an odd value": _element,
    "array: scaled": _scaled,
    "array: another type": _typed,
    "array: another shape": _reshaped,
    "array: column by column": _fortran,
    "array: structured": _structured,
    "array: pickled": _pickled,
    "array: zipped": _zipped,
    "array: huge": _huge,
    "array: an odd header": _odd_header,
    "array: declares what it is not": _declares,
    "array: damaged": _damaged,
}
"""Each gives an array from a sound one."""
