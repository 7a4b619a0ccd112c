"""Nonsense for the wire format: broken arrays, and generators of wild values and headers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from flwr.app import Array
from hypothesis import strategies as st


def npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    width = 2 if version == 1 else 4
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(header.encode()).to_bytes(width, "little")
        + header.encode()
        + body
    )


def described(descr: Any, shape: Any, body: bytes = bytes(64), order: Any = False) -> bytes:
    return npy(repr({"descr": descr, "fortran_order": order, "shape": shape}), body)


def zipped(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "npz":
        np.savez(out, x=np.ones(1, np.float32))
    else:
        with zipfile.ZipFile(out, "w") as z:
            z.writestr("a.txt", "b")
    return out.getvalue()


BAD_BYTES = {
    "nothing": b"",
    "text": b"garbage",
    "pickle": b"\x80\x04K*.",
    "npz": zipped("npz"),
    "zip": zipped("zip"),
    "broken zip": b"PK\x03\x04garbage",
    "open brackets": npy("{'descr': (\n"),
    "indented": npy("  {\n x\n  y"),
    "deeply nested": npy("(" * 9000),
    "no header": npy(""),
    "text as header": npy("'x'"),
    "long header": npy("{" + " " * 50_000 + "}", version=2),
    "petabytes": described("<f4", (10**15,)),
    "more than there are numbers": described("<f4", (10**30,)),
    "negative shape": described("<f4", (-1,)),
    "shape of text": described("<f4", ("1",)),
    "too few bytes": described("<f4", (1,), b"12"),
    "other shape": described("<f4", (2,)),
    "objects": described("|O", (1,)),
    "text dtype": described("<U4", (1,)),
    "dates": described("<M8[s]", (1,)),
    "other byte order": described(">f4", (1,)),
    "record": described([("a", "<f4")], (1,)),
    "broken record": described([("a",)], (1,)),
    "no dtype": described("<x9", (1,)),
    "order": described("<f4", (1,), order="C"),
}


INT = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 12)
FLOAT = st.floats() | st.just(0.0)
TEXT = st.text(max_size=6) | st.sampled_from(["normalized", "head", "clinic"])
VALUE = (
    INT
    | FLOAT
    | TEXT
    | st.booleans()
    | st.binary(max_size=4)
    | st.lists(INT, max_size=7)
    | st.lists(FLOAT, max_size=7)
    | st.lists(TEXT, max_size=4)
    | st.lists(st.booleans(), max_size=4)
    | st.lists(st.binary(max_size=3), max_size=3)
)
KEYS = ["kind", "scope", "labels", "counts", "num-classes", "client", "total", "correct", "loss", "error"]
CHANGES = st.dictionaries(st.sampled_from([*KEYS, "protocol", "seconds"]), VALUE, max_size=3)
ARRAY_KEYS = st.sampled_from(
    [
        "3/fc.bias",
        "-1/fc.weight",
        "0/fc.bias",
        "²/fc.bias",
        "--1/fc.bias",
        "٣/fc.bias",
        "03/fc.bias",
        "/",
        "3/x",
    ]
) | st.text(max_size=8)
ARRAYS = st.sampled_from(
    [
        Array(a)
        for a in (
            np.ones(2),
            -np.ones(2),
            np.ones(2, np.int32),
            np.full(2, np.nan),
            np.ones((2, 3)),
            np.array(1),
        )
    ]
) | st.sampled_from([Array("float32", (2,), "numpy.ndarray", d) for d in BAD_BYTES.values()])
ARRAY_CHANGES = st.dictionaries(ARRAY_KEYS, st.none() | ARRAYS, max_size=2)


JSON = st.recursive(
    st.none() | st.booleans() | INT | FLOAT | TEXT | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
SPEC = st.fixed_dictionaries({"shape": st.lists(INT, max_size=2) | JSON, "dtype": st.just("float32") | JSON})
UPDATE_CHANGES = st.dictionaries(
    st.sampled_from(["format", "threshold", "dampening", "tensors"]),
    JSON | st.dictionaries(st.sampled_from(["z.weight", "half", "x"]), SPEC, max_size=2),
    max_size=2,
)
UPDATE_KEYS = st.sampled_from(["i/z.weight", "f/z.weight", "i/half", "f/half", "i/x"])
