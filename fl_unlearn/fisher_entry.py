"""The file in which a ledger keeps one Fisher: a line of JSON, then the sums as a safetensors file.

The line says what the sums hold for; the tensors are named group/parameter, float64. Such a file is as large
as all classes together. It is written from the sums as they lie in memory, and read in one pass that takes no
more memory than what is asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import IO, Any

import torch
from torch import Tensor

from fl_unlearn.files import Bytes, read_exactly, read_into
from fl_unlearn.fisher_sums import FisherSums
from fl_unlearn.tensor_file import Layout, Segment, encode_parts, parse
from fl_unlearn.types import REST, FisherError, StoreError

FORMAT = 1
_LONGEST_LINE = 2**24


def encode_entry(
    about: Mapping[str, Any], sums: FisherSums, lacking: Collection[int]
) -> tuple[list[Bytes], str]:
    """One entry, and its checksum.

    Args:
        about: What the sums hold for, for `read_entry` to compare; JSON-able.
        sums: The sums, float64, every class apart.
        lacking: Classes that were left out of them.

    Returns:
        The parts of the file, in order, and the SHA-256 (hexadecimal) over all of them.
    """
    own = {"num_classes": sums.num_classes, "names": sums.names, "lacking": sorted(set(lacking))}
    counts = {str(g): n for g, n in sums.counts.items()}
    line = json.dumps({"format": FORMAT, "about": dict(about), "counts": counts, **own}).encode() + b"\n"
    header, tensors = encode_parts({f"{g}/{n}": t for g, s in sums.sums.items() for n, t in s.items()})
    parts: list[Bytes] = [line, header, *tensors.values()]
    digest = sha256()
    for part in parts:
        digest.update(part)
    return parts, digest.hexdigest()


def read_entry(
    raw: IO[bytes],
    size: int,
    about: Mapping[str, Any],
    checksum: str,
    *,
    apart: Collection[int] | None = None,
    without: Collection[int] = (),
) -> FisherSums | None:
    """The sums of one entry, if it holds.

    Args:
        raw: The file, at its beginning.
        size: Of the file, in bytes.
        about: What the sums must hold for.
        checksum: What `encode_entry` gave.
        apart: Classes that keep sums of their own, all others being added under `types.REST`; None: each.
        without: Classes to leave out.

    Returns:
        The sums, zero under `types.REST` if no class is left; None when they lack a class that is not in
        ``without``.

    Raises:
        FisherError: If the file is not exactly one that `encode_entry` wrote for ``about``.
    """
    file, digest = io.BufferedReader(raw), sha256()  # type: ignore[type-var]
    try:
        line = file.readline(_LONGEST_LINE)
        own = json.loads(line)
        if own["format"] != FORMAT:
            raise FisherError(f"it has format {own['format']!r}, this version reads {FORMAT}")
        if own["about"] != dict(about):
            raise FisherError("it holds for another model, or for other data")
        if not {int(c) for c in own["lacking"]} <= set(without):
            return None
        counts = {int(g): int(n) for g, n in own["counts"].items()}
        groups = {g: REST if apart is not None and g not in apart else g for g in counts if g not in without}
        layout = _layout(file, size - len(line))
        digest.update(line + layout.header)
        wanted = {f"{g}/{n}": (groups.get(g), str(n)) for g in counts for n in own["names"]}
        if (
            not all(0 <= g < own["num_classes"] for g in counts)
            or {s.name for s in layout.segments} != wanted.keys()
        ):
            raise FisherError("its groups and tensors do not go together")
        sums = _sum_up(file, layout.segments, wanted, digest)
        if digest.hexdigest() != checksum:
            raise FisherError("it is damaged: its content is not that which its name was given for")
        named = {g: {n: s[n] for n in own["names"]} for g, s in sorted(sums.items())}
        totals = {g: sum(counts[c] for c, into in groups.items() if into == g) for g in named}
        fisher = FisherSums(about["kind"], about["scope"], int(own["num_classes"]), named, totals)
        fisher.validate()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StoreError) as e:
        if isinstance(e, FisherError):
            raise
        raise FisherError(f"it is no entry of a ledger: {type(e).__name__}: {e}") from e
    return fisher


def _layout(file: IO[bytes], size: int) -> Layout:
    head = bytes(read_exactly(file, min(8, size)))
    length = min(int.from_bytes(head, "little"), size)
    return parse(head + bytes(read_exactly(file, length)), size, "the part with the sums")


def _sum_up(
    file: IO[bytes], segments: Collection[Segment], wanted: Mapping[str, tuple[int | None, str]], digest: Any
) -> dict[int, dict[str, Tensor]]:
    """Each tensor, added to those that go to the same place; every byte goes into ``digest``."""
    buffer = bytearray(max((s.size for s in segments), default=0))
    sums: dict[int, dict[str, Tensor]] = {}
    shapes = {wanted[segment.name][1]: segment.shape for segment in segments}
    for segment in segments:
        view = memoryview(buffer)[: segment.size]
        if segment.dtype != torch.float64 or read_into(file, view) != segment.size:
            raise FisherError(f"its tensor {segment.name!r} is not float64, or cut off")
        digest.update(view)
        group, name = wanted[segment.name]
        if group is None:
            continue
        values = torch.frombuffer(view, dtype=torch.float64) if segment.size else torch.zeros(0).double()
        values = values.reshape(segment.shape)
        total = sums.setdefault(group, {}).get(name)
        if total is None:
            sums[group][name] = values.clone()
        elif total.shape == values.shape:
            total += values
        else:
            raise FisherError(f"its tensor {segment.name!r} is {list(values.shape)}, not {list(total.shape)}")
    return sums or {REST: {n: torch.zeros(shape, dtype=torch.float64) for n, shape in shapes.items()}}
