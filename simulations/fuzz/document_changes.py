"""Ways to change a document: its bytes, its JSON text, or its values. Nothing is signed anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from fl_unlearn.request_document import RequestDocument


# --------------------------------------------------------------------------- bytes
def _flip(random: Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


def _cut(random: Random, data: bytes, other: bytes) -> bytes:
    begin = random.randrange(len(data))
    return data[:begin] + data[begin + random.randint(1, 40) :]


def _insert(random: Random, data: bytes, other: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randint(1, 4)) + data[at:]


def _repeat(random: Random, data: bytes, other: bytes) -> bytes:
    begin = random.randrange(len(data))
    end = begin + random.randint(1, 80)
    return data[:end] + data[begin:end] + data[end:]


def _cross(random: Random, data: bytes, other: bytes) -> bytes:
    at = random.randrange(min(len(data), len(other)))
    return data[:at] + other[at:]


def _noise(random: Random, data: bytes, other: bytes) -> bytes:
    return random.randbytes(random.randint(0, 64))


BYTE_CHANGES: dict[str, Callable[[Random, bytes, bytes], bytes]] = {
    "bits flipped": _flip,
    "bytes cut out": _cut,
    "bytes put in": _insert,
    "bytes repeated": _repeat,
    "crossed with another": _cross,
    "noise": _noise,
}
"""Each gives bytes from a document's and another's."""


# --------------------------------------------------------------------------- text
def _respaced(random: Random, text: str) -> bytes:
    plain = json.loads(text)
    order = random.sample([*plain], len(plain))
    shuffled = {name: plain[name] for name in order}
    return json.dumps(
        shuffled, indent=random.choice((None, 0, 2)), ensure_ascii=random.random() < 0.5
    ).encode()


def _escaped(random: Random, text: str) -> bytes:
    at = random.choice([i for i, c in enumerate(text) if c.isalnum()])
    return (text[:at] + f"\\u{ord(text[at]):04X}" + text[at + 1 :]).encode()


def _doubled(random: Random, text: str) -> bytes:
    plain = json.loads(text)
    name = random.choice([*plain])
    value = random.choice((plain[name], None, "operator", 1))
    extra = f"{json.dumps(name)}:{json.dumps(value)}"
    return (f"{{{extra},{text[1:]}" if random.random() < 0.5 else f"{text[:-1]},{extra}}}").encode()


def _doubled_client(random: Random, text: str) -> bytes:
    return text.replace('"samples":{', '"samples":{"3":["a"],"3":["a"],', 1).encode()


def _number(random: Random, text: str) -> bytes:
    odd = random.choice(("1.0", "1e0", "NaN", "-Infinity", "-0", "01", "1" * 5000, "true", "0x1", "1_0"))
    return text.replace('"version":1', f'"version":{odd}', 1).encode()


def _class_number(random: Random, text: str) -> bytes:
    odd = random.choice(
        ("3.0", "3e0", "NaN", "-0", "-1", "2147483648", "9" * 400, "false", "null", '"3"', "[3]")
    )
    return text.replace('"classes":[', f'"classes":[{odd},', 1).replace(",]", "]").encode()


def _encoded(random: Random, text: str) -> bytes:
    return text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32-le", "utf-7", "cp037")))


def _deep(random: Random, text: str) -> bytes:
    n = random.choice((100, 2000, 60_000))
    brackets = random.choice(("[" * n + "]" * n, '{"a":' * n + "1" + "}" * n, "[" * n))
    return text.replace("null", brackets, 1).encode()


def _large(random: Random, text: str) -> bytes:
    padding = " " * random.choice((2**20 - len(text), 2**20 - len(text) + 1, 2**21))
    return (text + padding).encode()


def _trailing(random: Random, text: str) -> bytes:
    return (text + random.choice((" ", "\n", "{}", ",", "\0", text, "//", "\u2028"))).encode()


TEXT_CHANGES: dict[str, Callable[[Random, str], bytes]] = {
    "fields in another order, spaces": _respaced,
    "a character escaped": _escaped,
    "a field twice": _doubled,
    "a client twice": _doubled_client,
    "odd version numbers": _number,
    "odd class numbers": _class_number,
    "another encoding": _encoded,
    "nested deeply": _deep,
    "padded to the limit": _large,
    "something after the end": _trailing,
}
"""Each gives bytes from a document's canonical JSON."""


# --------------------------------------------------------------------------- values
_TEXTS = (
    "",
    " ",
    "a\n",
    "a\u202eb",
    "\u0000",
    "\ud800",
    "é",
    "x" * 201,
    "x" * 200,
    " a",
    "3",
    "operator",
    "fast",
)
_TIMES = (
    *("2026-11-21T02:00:00Z", "2026-02-30T00:00:00Z", "2026-11-22T24:00:00Z", "0000-01-01T00:00:00Z"),
    *(
        "2026-11-22T02:00:00+00:00",
        "2026-11-22 02:00:00Z",
        "9999-12-31T23:59:59Z",
        "\u0662026-11-22T02:00:00Z",
    ),
)
_OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 3, -1, 2**31, 2**53, 2**64, [], {}, [[]], [None], ["a", 1], {"a": {}}, [1, 1]),
    *([2, 1], ["b", "a"], ["a", "a"], {"3": []}, {"3": ["a"]}, {"": ["a"]}, {"3": [0], "5": ["b"]}),
)
_RIGHT = {"classes": [3], "clients": ["3"], "samples": {"3": ["patient-1"]}}


def _any_value(random: Random) -> Any:
    return random.choice(random.choice((_TEXTS, _TIMES, _OTHERS)))


def _places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values in ``plain``, itself left out."""
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return ([path] if path else []) + [p for name, value in inner for p in _places(value, (*path, name))]


def _put(plain: Any, path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        plain = plain[name]
    plain[path[-1]] = value


def _replaced(random: Random, plain: dict[str, Any]) -> None:
    _put(plain, random.choice(_places(plain)), _any_value(random))


def _left_out(random: Random, plain: dict[str, Any]) -> None:
    path = random.choice([p for p in _places(plain) if isinstance(p[-1], str)])
    for name in path[:-1]:
        plain = plain[name]
    del plain[path[-1]]


def _added(random: Random, plain: dict[str, Any]) -> None:
    objects = (plain, plain["target"], plain["target"]["samples"], plain["signature"])
    random.choice(objects)[random.choice(("extra", "", "id ", "Target", "3", "\u202e", "__class__"))] = (
        _any_value(random)
    )


def _swapped(random: Random, plain: dict[str, Any]) -> None:
    one, two = random.sample([*plain], 2)
    plain[one], plain[two] = plain[two], plain[one]


def _target(random: Random, plain: dict[str, Any]) -> None:
    """Another target that is well formed: more than was asked for, or something else."""
    target, kind = (
        plain["target"],
        random.choice(("more classes", "everybody", "classes", "clients", "samples")),
    )
    if kind == "more classes":
        target["classes"] = sorted({*target["classes"], random.randrange(10)})
    elif kind == "everybody" and target["classes"]:
        target["clients"] = []
    else:
        plain["target"] = {"classes": [], "clients": [], "samples": {}}
        kind = kind if kind in _RIGHT else "classes"
        plain["target"][kind] = _RIGHT[kind]


def _requester(random: Random, plain: dict[str, Any]) -> None:
    names = (
        "operator",
        "trials",
        "hospital-3",
        "clinics",
        "auditor",
        "Operator",
        "operator\u200b",
        "\u043eperator",
    )
    plain["requester"] = random.choice(names)


def _times(random: Random, plain: dict[str, Any]) -> None:
    plain[random.choice(("created", "deadline"))] = random.choice((*_TIMES, None))


def _meaning(random: Random, plain: dict[str, Any]) -> None:
    """The rest of what is signed: id, federation, scope, reason, version."""
    name = random.choice(("id", "federation", "scope", "reason", "version"))
    new_id = f"{random.getrandbits(128):032x}"
    new = {"id": new_id, "federation": "trial-8", "scope": "all", "reason": "because", "version": 2}
    plain[name] = new[name]


def _long(random: Random, plain: dict[str, Any]) -> None:
    n = random.choice((9_999, 10_000, 10_001)) if random.random() < 0.02 else random.randint(20, 60)
    target: dict[str, Any] = {"classes": [], "clients": [], "samples": {}}
    what = random.choice(("classes", "clients", "samples"))
    target[what] = {"classes": [*range(n)], "clients": [f"{i:05}" for i in range(n)], "samples": {}}[what]
    if what == "samples":
        target["samples"] = {"3": [*range(10 * n)]}
    plain["target"] = target


JSON_CHANGES: dict[str, Callable[[Random, dict[str, Any]], None]] = {
    "a value replaced": _replaced,
    "a field left out": _left_out,
    "a field added": _added,
    "fields swapped": _swapped,
    "another target": _target,
    "another requester": _requester,
    "another time": _times,
    "another id, federation, scope, reason or version": _meaning,
    "long lists, some at the limit": _long,
}
"""Each changes a document's plain values."""


def edited(
    random: Random, document: RequestDocument, change: Callable[[Random, dict[str, Any]], None]
) -> bytes:
    """The document as JSON after a change of its values."""
    plain = document.to_json()
    change(random, plain)
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
