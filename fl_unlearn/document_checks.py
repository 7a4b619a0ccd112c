"""The form of request documents, field by field: each is checked, and refused with what to change."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from fl_unlearn.types import DocumentError, ForgetRequest, RequestError

MAX_BYTES = 2**20
"""Most bytes of a document, as it comes and in its canonical form."""
MAX_TEXT = 200
"""Most characters of a name, a sample's key or a scope."""
MAX_REASON = 2000
"""Most characters of a reason."""
MAX_NAMED = 10_000
"""Most classes, and most clients, that one document names."""
MAX_SAMPLES = 100_000
"""Most samples that one document names."""
MAX_CLASS = 2**31 - 1
MAX_POSITION = 2**53 - 1  # beyond it, other readers of JSON round

_TIME = re.compile("([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z")


def shown(value: Any) -> str:
    """``value`` for an error message: short, and nothing in it that would change how the message looks."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a value of type {type(value).__name__}"


# --------------------------------------------------------------------------- JSON
def parse_json(data: bytes | bytearray) -> Any:
    """Plain values from JSON in UTF-8; a `DocumentError` otherwise, also for repeated keys and fractions."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_no_fraction,
            parse_constant=_no_fraction,
        )
    except DocumentError:
        raise
    except RecursionError as e:
        raise DocumentError("the document is nested too deeply; see request_schema.json for its form") from e
    except ValueError as e:  # not UTF-8, not JSON, or a number of thousands of digits
        raise DocumentError(f"the document is not JSON in UTF-8: {e}") from e


def check_size(data: bytes | bytearray) -> None:
    """Refuse a document of more than `MAX_BYTES`."""
    if len(data) > MAX_BYTES:
        raise DocumentError(
            f"a document has at most {MAX_BYTES} bytes, with all but ASCII escaped; got {len(data)}: name "
            "fewer samples, and the others in a document of their own"
        )


def check_fields(what: str, plain: Any, wanted: Sequence[str]) -> None:
    """Refuse anything but an object with exactly the fields ``wanted``."""
    if type(plain) is not dict:
        raise DocumentError(f"{what} must be an object with {', '.join(wanted)}; got {shown(plain)}")
    for name in plain:
        if name not in wanted:
            near = difflib.get_close_matches(str(name)[:MAX_TEXT], wanted, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DocumentError(f"{what} has no field {shown(name)}, only {', '.join(wanted)}{hint}")
    if missing := [name for name in wanted if name not in plain]:
        raise DocumentError(
            f"{what} lacks {', '.join(missing)}; every field is needed, null where it has no value"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise DocumentError(f"the document has {shown(twice)} twice in one object; leave one out")
    return out


def _no_fraction(text: str) -> Any:
    raise DocumentError(f"a document holds whole numbers only, got {shown(text)}")


# --------------------------------------------------------------------------- texts and times
def check_text(what: str, value: Any, *, most: int = MAX_TEXT, least: int = 1) -> None:
    """Refuse anything but a text of ``least`` to ``most`` printable characters without spaces at its ends."""
    if type(value) is not str:
        raise DocumentError(f"{what} must be a text, got {shown(value)}")
    if not least <= len(value) <= most:
        raise DocumentError(
            f"{what} must have {least} to {most} characters, got {len(value)}: {shown(value)}"
        )
    if not value.isprintable() or value != value.strip():
        raise DocumentError(
            f"{what} must be of printable characters (no line breaks, control or direction marks) without "
            f"spaces at its ends, got {shown(value)}"
        )


def time_text(what: str, time: Any) -> str:
    """A time as documents hold it, such as ``2026-11-22T02:00:00Z``; refused unless UTC in whole seconds."""
    if not isinstance(time, datetime) or time.utcoffset() != timedelta(0) or time.microsecond:
        raise DocumentError(
            f"{what} must be a datetime in UTC in whole seconds, got {shown(time)}; try "
            "datetime.now(UTC).replace(microsecond=0)"
        )
    return time.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def parse_time(what: str, text: Any) -> datetime:
    """The time that `time_text` gave."""
    found = _TIME.fullmatch(text) if type(text) is str else None
    try:
        if found is not None:
            return datetime(*(int(part) for part in found.groups()), tzinfo=UTC)  # type: ignore[arg-type,misc]
    except ValueError:  # a 13th month, say
        pass
    raise DocumentError(f"{what} must be a time in UTC such as '2026-11-22T02:00:00Z', got {shown(text)}")


# --------------------------------------------------------------------------- the target
def target_json(request: ForgetRequest) -> dict[str, Any]:
    """What a request names, as plain values; the reason stands elsewhere in a document."""
    samples = {client: list(named) for client, named in request.samples.items()}
    return {"classes": list(request.classes), "clients": list(request.clients), "samples": samples}


def parse_target(plain: Any, reason: Any) -> ForgetRequest:
    """The request that `target_json` gave, with its reason; refused unless it is within the limits."""
    check_fields("target", plain, ("classes", "clients", "samples"))
    _check_list("target.classes", plain["classes"], MAX_NAMED, _number(MAX_CLASS))
    _check_order("target.classes", plain["classes"])
    _check_list("target.clients", plain["clients"], MAX_NAMED, check_text)
    if len(set(plain["clients"])) < len(plain["clients"]):
        raise DocumentError(f"target.clients must have no repeats, got {shown(plain['clients'])}")
    _check_samples(plain["samples"])
    check_text("reason", reason, most=MAX_REASON, least=0)
    try:
        return ForgetRequest(plain["classes"], plain["clients"], reason, plain["samples"])
    except RequestError as e:  # nothing is named, or samples together with classes
        raise DocumentError(f"target: {e}") from e


def _check_samples(plain: Any) -> None:
    if type(plain) is not dict:
        raise DocumentError(f"target.samples must be an object of client to samples, got {shown(plain)}")
    for client, named in plain.items():
        check_text("a client in target.samples", client)
        what = f"target.samples[{shown(client)}]"
        keys = type(named) is list and bool(named) and type(named[0]) is str
        _check_list(what, named, MAX_SAMPLES, check_text if keys else _number(MAX_POSITION))
        _check_order(what, named)
    if len(plain) > MAX_NAMED or sum(map(len, plain.values())) > MAX_SAMPLES:
        raise DocumentError(
            f"target.samples names at most {MAX_NAMED} clients and {MAX_SAMPLES} samples, got {len(plain)} "
            f"and {sum(map(len, plain.values()))}; name the others in a document of their own"
        )


def _check_list(what: str, plain: Any, most: int, check: Callable[[str, Any], None]) -> None:
    if type(plain) is not list:
        raise DocumentError(f"{what} must be a list, got {shown(plain)}")
    if len(plain) > most:
        raise DocumentError(f"{what} has at most {most} entries, got {len(plain)}; make several documents")
    for i, value in enumerate(plain):
        check(f"{what}[{i}]", value)


def _check_order(what: str, plain: list[Any]) -> None:
    for before, after in pairwise(plain):
        if not before < after:
            raise DocumentError(
                f"{what} must ascend without repeats, got {shown(before)} before {shown(after)}"
            )


def _number(most: int) -> Callable[[str, Any], None]:
    def check(what: str, value: Any) -> None:
        if type(value) is not int or not 0 <= value <= most:
            raise DocumentError(f"{what} must be a whole number from 0 to {most}, got {shown(value)}")

    return check
