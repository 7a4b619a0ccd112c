"""Ways to change a message's content: the values and lists of its configuration, its arrays, its records."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from simulations.fuzz import arrays

_NUMBERS = (0, 1, -1, -2, 2, 3, 7, 10**6, 10**12, 10**12 + 1, 2**31, 2**53, 2**63 - 1, -(2**63), 10**18)
_FLOATS = (0.0, -0.0, -1.0, 0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"))
_TEXTS = (
    "", " ", "0", "1", "2", "node-1", "all", "head", "x" * 151, "x" * 5000, "é" * 60, "a\nb", "\x00",
    "../../x", "\u202e0", "\U0001f600", "0\u200b", "None", "[]", "{}", "[" * 3000, "fc.*,*", "hidden.weight",
    "normalized", "auto", "none",
)  # fmt: skip
_KEYS = ("error", "client", "labels", "counts", "seconds", "", "\u202e", "x" * 999, "protocol")


def copied(content: RecordDict) -> RecordDict:
    """The same records, to be changed; the arrays themselves are shared."""
    out = RecordDict()
    for name, record in content.items():
        values = {k: list(v) if isinstance(v, list) else v for k, v in record.items()}
        out[name] = type(record)(values)  # type: ignore[arg-type]
    return out


def _scalar(random: Random) -> Any:
    kind = random.randrange(5)
    if kind == 0:
        return random.choice(_TEXTS).encode()[:50]
    return random.choice((_NUMBERS, _FLOATS, _TEXTS, (True, False))[kind - 1])


def _value(random: Random) -> Any:
    one = _scalar(random)
    return one if random.random() < 0.5 else [one] * random.choice((0, 1, 2, 3, 40))


def _config(random: Random, content: RecordDict) -> ConfigRecord:
    return random.choice([*content.config_records.values()])


def _replace(random: Random, content: RecordDict) -> None:
    record = _config(random, content)
    record[random.choice([*record])] = _value(random)


def _nudge(random: Random, content: RecordDict) -> None:
    """A number near or far, of the right type."""
    record = _config(random, content)
    key = random.choice([*record])
    value: Any = record[key]
    numbers: list[Any] = value if isinstance(value, list) else [value]
    if numbers:
        at = random.randrange(len(numbers))
        if isinstance(numbers[at], bool):
            numbers[at] = not numbers[at]
        elif isinstance(numbers[at], int):
            numbers[at] = random.choice(
                (numbers[at] + 1, numbers[at] - 1, -numbers[at], numbers[at] * 25, *_NUMBERS)
            )
        elif isinstance(numbers[at], float):
            numbers[at] = random.choice((numbers[at] * 2, -numbers[at], *_FLOATS))
        elif isinstance(numbers[at], str):
            numbers[at] = random.choice((numbers[at] + " ", numbers[at][:-1], numbers[at].upper(), *_TEXTS))
        record[key] = numbers if isinstance(value, list) else numbers[0]


def _relist(random: Random, content: RecordDict) -> None:
    record = _config(random, content)
    lists = [k for k, v in record.items() if isinstance(v, list)]
    if not lists:
        return
    key = random.choice(lists)
    values: list[Any] = list(record[key])  # type: ignore[arg-type]
    match random.randrange(6):
        case 0:
            values = values[:-1]
        case 1:
            values = values + values[:1]
        case 2:
            values = values[::-1]
        case 3:
            values = []
        case 4:
            values = values * 50
        case _:
            values = values[:1] * len(values)
    record[key] = values


def _drop_key(random: Random, content: RecordDict) -> None:
    record = _config(random, content)
    del record[random.choice([*record])]


def _add_key(random: Random, content: RecordDict) -> None:
    _config(random, content)[random.choice(_KEYS)] = _value(random)


def _swap_keys(random: Random, content: RecordDict) -> None:
    record = _config(random, content)
    a, b = (random.choice([*record]) for _ in range(2))
    record[a], record[b] = record[b], record[a]


def _drop_record(random: Random, content: RecordDict) -> None:
    del content[random.choice([*content])]


def _rename_record(random: Random, content: RecordDict) -> None:
    name = random.choice([*content])
    record = content[name]
    del content[name]
    content[random.choice((name + "s", "", "unlearn", "unlearn.model", "unlearn.fisher", "é"))] = record


def _other_record(random: Random, content: RecordDict) -> None:
    other = random.choice((MetricRecord({"labels": [1, 2]}), ArrayRecord(), ConfigRecord(), MetricRecord({})))
    content[random.choice([*content, "unlearn.extra"])] = other


def _array_place(random: Random, content: RecordDict) -> None:
    """An array less, one more, two in each other's place, or one under another name."""
    record = _arrays(random, content)
    if record is None:
        return
    name, other = (random.choice([*record]) for _ in range(2))
    found = record[name]
    match random.randrange(4):
        case 0:
            del record[name]
        case 1:
            record[name], record[other] = record[other], found
        case _:
            group, _, rest = name.partition("/")
            names = (
                f"{group}/",
                f"/{rest}",
                f"9/{rest}",
                f" {name}",
                f"{name}/x",
                f"-1/{rest}",
                f"0{name}",
                "\u0661/" + rest,
                "",
            )
            if random.random() < 0.5:
                del record[name]
            record[random.choice(names)] = found


def _arrays(random: Random, content: RecordDict) -> ArrayRecord | None:
    records = [r for r in content.array_records.values() if r]
    return random.choice(records) if records else None


def _on_array(change: Callable[[Random, Array], Array]) -> Callable[[Random, RecordDict], None]:
    def changed(random: Random, content: RecordDict) -> None:
        record = _arrays(random, content)
        if record is not None:
            name = random.choice([*record])
            record[name] = change(random, record[name])

    return changed


CHANGES: dict[str, Callable[[Random, RecordDict], None]] = {
    "value replaced": _replace,
    "value moved": _nudge,
    "list changed": _relist,
    "key left out": _drop_key,
    "key added": _add_key,
    "keys in each other's place": _swap_keys,
    "record left out": _drop_record,
    "record under another name": _rename_record,
    "record of another kind": _other_record,
    "array misplaced": _array_place,
    **{name: _on_array(change) for name, change in arrays.CHANGES.items()},
}
"""Each changes a copy in place; one that finds nothing to change leaves it as it is."""


def changed(random: Random, content: RecordDict) -> tuple[str, RecordDict]:
    """A changed copy, and how: by one change, seldom by two."""
    out, names = copied(content), []
    for _ in range(random.choice((1, 1, 1, 2))):
        if not out.config_records:
            break
        having = _arrays(random, out) is not None
        name = random.choice([n for n in CHANGES if having or not n.startswith("array")])
        try:
            CHANGES[name](random, out)
        except Exception:  # a second change may not be able to follow the first
            continue
        names.append(name)
    return (names[0] if names else "as sent"), out
