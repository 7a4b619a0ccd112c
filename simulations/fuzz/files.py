"""Update files and checkpoints: the safetensors files that the library reads, changed in many ways."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from fl_unlearn.dampen import apply_update
from fl_unlearn.erase import Erasure
from fl_unlearn.tensor_file import decode, encode
from fl_unlearn.types import CorruptCheckpointError, TensorSpec, UpdateError
from fl_unlearn.update import DampeningUpdate, Entry, ErasedLayer
from simulations.fuzz.contract import Case, Verdict
from simulations.fuzz.document_changes import BYTE_CHANGES

_MOST_MEMORY = 40_000_000
_TYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "U64", "C64", "", "f32")
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1 << 40, 1 << 63, 1 << 70, 0.5, -0.5, 1e308, float("nan"), float("inf"),
    "",
    "x", "head.weight", "bias", "running_mean", "weight", "float32", "int64", "é", "\ud800",
    "\x00", [], {},
    [0], [1 << 40], [1 << 40, 1 << 40], [-1], [1.5], ["1"], [True], [[1]], {"shape": [2], "dtype": "float32"},
    "fl-unlearn-update/1", "fl-unlearn-update/2", "fl-unlearn-update/3",
)  # fmt: skip


# --------------------------------------------------------------------------- safetensors, by hand
def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and values of a sound file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(fields: Any, body: bytes, *, claims: int | None = None) -> bytes:
    """A file of any header and values."""
    text = json.dumps(fields).encode()
    return (len(text) if claims is None else claims).to_bytes(8, "little") + text + body


def _places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return ([path] if path else []) + [p for name, value in inner for p in _places(value, (*path, name))]


def _edit(random: Random, plain: Any) -> Any:
    """One value replaced, left out, doubled, moved a little, or put under another name."""
    places = _places(plain)
    if not places:
        return random.choice(_VALUES)
    *way, last = random.choice(places)
    at = plain
    for name in way:
        at = at[name]
    value = at[last]
    match random.randrange(5):
        case 0:
            del at[last]
        case 1 if isinstance(at, dict):
            at[random.choice(("x", "", str(last) + "s", "head.weight"))] = value
        case 2 if isinstance(value, int | float):
            at[last] = random.choice((value + 1, value - 1, -value, value * 2))
        case 3 if isinstance(value, list):
            at[last] = random.choice((value[::-1], value[:-1], value * 2, [*value, 1]))
        case _:
            at[last] = random.choice(_VALUES)
    return plain


# --------------------------------------------------------------------------- changes of a file
def _on_header(random: Random, data: bytes) -> bytes:
    fields, body = parts(data)
    return joined(_edit(random, fields), body)


def _on_own_header(random: Random, data: bytes) -> bytes:
    """What the library wrote into the metadata, as JSON within JSON."""
    fields, body = parts(data)
    own = fields["__metadata__"]
    own["fl_unlearn"] = json.dumps(_edit(random, json.loads(own["fl_unlearn"])))
    return joined(fields, body)


def _own_text(random: Random, data: bytes) -> bytes:
    fields, body = parts(data)
    texts = (
        "",
        "null",
        "[]",
        "3",
        '"x"',
        "{",
        "[" * 100_000,
        '{"format": ' * 2000,
        "NaN",
        '{"applied": null}',
        '{"applied": [3]}',
    )
    fields["__metadata__"] = random.choice(
        (None, [], "x", {}, {"fl_unlearn": random.choice(texts)}, {"fl_unlearn": 3})
    )
    return joined(fields, body)


def _retyped(random: Random, data: bytes) -> bytes:
    fields, body = parts(data)
    names = [n for n in fields if n != "__metadata__"]
    fields[random.choice(names)]["dtype"] = random.choice(_TYPES)
    return joined(fields, body)


def _huge(random: Random, data: bytes) -> bytes:
    fields, body = parts(data)
    entry = fields[random.choice([n for n in fields if n != "__metadata__"])]
    big = random.choice(([1 << 40], [1 << 62, 4], [1 << 32, 1 << 32], [0, 1 << 62], [-1], [1 << 64]))
    match random.randrange(3):
        case 0:
            entry["shape"] = big
        case 1:
            entry["shape"], entry["data_offsets"] = big, [0, 4 * max(0, math.prod(big))]
        case _:
            return joined(
                fields, body, claims=random.choice((1 << 20, 1 << 40, (1 << 64) - 1, 0, 1, 100_000_001))
            )
    return joined(fields, body)


def _values(random: Random, data: bytes) -> bytes:
    """Elements of a tensor: other bits, another tensor's, all the same."""
    fields, body = parts(data)
    begin, end = fields[random.choice([n for n in fields if n != "__metadata__"])]["data_offsets"]
    out = bytearray(body)
    words = (
        b"\x00\x00\xc0\x7f",
        b"\x00\x00\x80\x7f",
        b"\x00\x00\x80\xbf",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x80\x3f",
        bytes(4),
    )
    if end - begin >= 4:
        at = begin + 4 * random.randrange((end - begin) // 4)
        out[at : at + 4] = random.choice(words)
        if random.random() < 0.3:
            other = begin + 4 * random.randrange((end - begin) // 4)
            out[at : at + 4] = out[other : other + 4]
    return joined(fields, bytes(out))


def _swapped(random: Random, data: bytes) -> bytes:
    fields, body = parts(data)
    a, b = (random.choice([n for n in fields if n != "__metadata__"]) for _ in range(2))
    fields[a], fields[b] = fields[b], fields[a]
    return joined(fields, body)


CHANGES: dict[str, Callable[[Random, bytes], bytes]] = {
    "header edited": _on_header,
    "own header edited": _on_own_header,
    "own header replaced": _own_text,
    "tensor of another type": _retyped,
    "tensor that is huge": _huge,
    "values changed": _values,
    "tensors in each other's place": _swapped,
}
"""Each gives bytes from a sound file's."""


def changed(random: Random, data: bytes, other: bytes) -> tuple[str, bytes]:
    """A changed file, and how."""
    if random.random() < 0.3:
        name = random.choice([*BYTE_CHANGES])
        return name, BYTE_CHANGES[name](random, data, other)
    name = random.choice([*CHANGES])
    return name, CHANGES[name](random, data)


def within(limit: int, act: Callable[[], Any]) -> Any:
    """What ``act`` gives; an error if it needs more memory than a file of a few kilobytes may."""
    tracemalloc.start()
    try:
        return act()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > limit:
            raise AssertionError(f"{peak} bytes were allocated")


# --------------------------------------------------------------------------- updates
def an_update(random: Random) -> DampeningUpdate:
    """A sound update of one to three tensors, every other one with an erasure."""
    entries = {}
    for name, shape in random.sample(
        [("head.weight", (3, 5)), ("hidden.bias", (5,)), ("é.w", (2, 2, 2))], random.randint(1, 3)
    ):
        size = math.prod(shape)
        chosen = sorted(random.sample(range(size), random.randint(1, size)))
        factors = torch.tensor([random.choice((0.0, random.random() * 0.99)) for _ in chosen])
        entries[name] = Entry(torch.tensor(chosen, dtype=torch.int32), factors, TensorSpec(shape, "float32"))
    erasures = {}
    if random.random() < 0.5:
        generator = torch.Generator().manual_seed(random.getrandbits(30))
        a, mean = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((5, 1), (5,)))
        b = a / (a * a).sum()
        spec = TensorSpec((5, 4), "float32"), TensorSpec((5,), "float32")
        erasures["hidden"] = ErasedLayer(
            Erasure(a, b, mean, 1.0), "hidden.weight", "hidden.bias", "bias", *spec
        )
    return DampeningUpdate(entries, random.choice((1.0, 3.0)), 1.0, erasures)


class Updates:
    """Update files, as a client or a store reads them."""

    def draw(self, random: Random) -> Case:
        """A sound file in one case of ten, otherwise a changed one."""
        data = an_update(random).to_bytes()
        if random.random() < 0.1:
            return Case("as written", data)
        return Case(*changed(random, data, an_update(random).to_bytes()))

    def judge(self, case: Case) -> Verdict:
        """Read it; what is accepted must be what it says, and change nothing else."""
        expected = "accepted" if case.mutation == "as written" else "refused"
        try:
            update = within(_MOST_MEMORY, lambda: DampeningUpdate.from_bytes(case.data))
        except UpdateError:
            return Verdict("refused", expected)
        again = DampeningUpdate.from_bytes(update.to_bytes())
        sound = again.digest == update.digest and all(_sound_entry(e) for e in update.entries.values())
        numbers = (
            update.threshold,
            update.dampening,
            *(e.erasure.strength for e in update.erasures.values()),
        )
        sound &= all(math.isfinite(n) and n > 0 for n in numbers)
        return Verdict("accepted", "accepted" if sound and _changes_only_its_own(update) else "refused")


def _sound_entry(entry: Entry) -> bool:
    indices, factors = entry.indices.tolist(), entry.factors.tolist()
    inside = all(0 <= i < math.prod(entry.spec.shape) for i in indices)
    return (
        inside
        and indices == sorted(set(indices))
        and len(factors) == len(indices) > 0
        and all(0 <= f < 1 for f in factors)
    )


def _changes_only_its_own(update: DampeningUpdate) -> bool:
    """Applied to a model that it fits, where that is small: the elements it names, and no others."""
    if any(math.prod(c.spec.shape) > 10_000 for c in update.changes.values()):
        return True  # it fits no model that there is
    state = {"other": torch.ones(3)}
    for name, change in update.changes.items():
        if name == "other":
            return True
        state[name] = torch.ones(change.spec.shape, dtype=getattr(torch, change.spec.dtype))
    after = apply_update(state, update)
    for name, tensor in state.items():
        if not torch.equal(tensor, torch.ones_like(tensor)):  # in place
            return False
        own = update.changes.get(name)
        if own is None or own.erasure is None:
            expected = torch.ones_like(tensor)
            if own is not None and own.entry is not None:
                flat = expected.view(-1)
                flat[own.entry.indices.long()] = own.entry.factors.to(tensor.dtype)
            if after[name].shape != tensor.shape or not torch.equal(after[name], expected):
                return False
    return after.keys() == state.keys()


# --------------------------------------------------------------------------- checkpoints
class Checkpoints:
    """Checkpoints, as a store, a client or the command line reads them."""

    def draw(self, random: Random) -> Case:
        """A sound file in one case of ten, otherwise a changed one."""
        data = self._sound(random)
        if random.random() < 0.1:
            return Case("as written", data)
        return Case(*changed(random, data, self._sound(random)))

    def judge(self, case: Case) -> Verdict:
        """Read it; what is accepted must be written and read as the same again."""
        expected = "accepted" if case.mutation == "as written" else "refused"
        try:
            found = within(_MOST_MEMORY, lambda: decode(case.data, "a file"))
        except CorruptCheckpointError:
            return Verdict("refused", expected)
        again = decode(encode(found.state, found.applied), "again")
        sound = again.applied == found.applied and again.state.keys() == found.state.keys()
        sound &= found.info.size == len(case.data)
        for name, tensor in found.state.items():
            other = again.state[name]
            sound &= tensor.dtype == other.dtype and tensor.shape == other.shape
            sound &= tensor.numel() == 0 or torch.equal(_bits(tensor), _bits(other))
        return Verdict("accepted", "accepted" if sound else "refused")

    def _sound(self, random: Random) -> bytes:
        generator = torch.Generator().manual_seed(random.getrandbits(30))
        state = {
            "head.weight": torch.randn(3, 5, generator=generator),
            "steps": torch.tensor(random.randint(0, 99)),
            "é": torch.randn(2, generator=generator).to(
                random.choice((torch.float16, torch.float64, torch.bfloat16))
            ),
            "mask": torch.tensor([True, False]),
        }
        return encode(state, tuple(f"{random.getrandbits(256):064x}" for _ in range(random.randint(0, 2))))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
