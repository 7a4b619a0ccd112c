"""Entries of the audit log, each with the hash of the one before it, and the file that holds the newest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fl_unlearn.store import write_atomically
from fl_unlearn.types import AuditError

START = "0" * 64
"""What stands for the hash of an entry before the first."""
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)
_HEAD_FORMAT = "fl-unlearn audit head 1"


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII only; a ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back (keys become texts, tuples lists).

    Raises:
        AuditError: If JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as e:
        raise AuditError(f"the audit log cannot keep what JSON cannot hold ({e}); leave it out") from e


def text_digest(text: str) -> str:
    """SHA-256 (hexadecimal) of a text."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One entry of the log.

    Attributes:
        seq: Its number, from 1 up without gaps.
        time: When it was written: UTC, ISO 8601.
        kind: What it tells of ("recorded", "decided"...).
        body: The particulars, as JSON holds them.
        previous: Hash of the entry before it, `START` for the first.
        hash: SHA-256 (hexadecimal) over the canonical JSON of all of the above.
        signature: Ed25519 signature (hexadecimal) of the store's id and the hash, or None.
    """

    seq: int
    time: str
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str
    signature: str | None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Entry:
        """An entry from outside, its form and its hash checked; a ValueError says what is wrong."""
        wanted = {"seq": int, "time": str, "kind": str, "body": dict, "previous": str, "hash": str}
        if set(values) != {*wanted, "signature"}:
            raise ValueError("it does not have the fields of an entry")
        for name, type_ in wanted.items():
            if type(values[name]) is not type_:
                raise ValueError(f"its {name} is of another type")
        if not isinstance(values["signature"], str | None):
            raise ValueError("its signature is of another type")
        entry = cls(**values)
        if not (_HEX.fullmatch(entry.previous) and _HEX.fullmatch(entry.hash)):
            raise ValueError("its hashes are malformed")
        try:
            hashed = entry.content_hash()
        except (TypeError, RecursionError) as e:
            raise ValueError("its body is no JSON") from e
        if hashed != entry.hash:
            raise ValueError("its content does not have the hash that it states")
        return entry

    def content_hash(self) -> str:
        """The hash that this content must have."""
        content = {n: v for n, v in vars(self).items() if n not in ("hash", "signature")}
        return text_digest(canonical(content))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `parse` reads them."""
        return asdict(self)


def parse_row(row: tuple[Any, ...]) -> Entry:
    """An entry from a row of the table, its form and its hash checked; a ValueError says what is wrong."""
    seq, time, kind, text, previous, hash_, signature = row
    try:
        body = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as e:
        raise ValueError("its body is no JSON") from e
    values = {"seq": seq, "time": time, "kind": kind, "body": body, "previous": previous}
    entry = Entry.parse({**values, "hash": hash_, "signature": signature})
    if canonical(body) != text:  # spaces, say: not another content, yet not what was written
        raise ValueError("its body was rewritten")
    return entry


def write_head(path: Path, store_id: str, entry: Entry) -> None:
    """Write down, atomically, that ``entry`` is the newest of a store's log; a StoreError if it cannot be."""
    own = {"seq": entry.seq, "hash": entry.hash, "signature": entry.signature}
    data = {"format": _HEAD_FORMAT, "store": store_id, **own}
    write_atomically(path, (canonical(data) + "\n").encode())


def read_head(path: Path) -> dict[str, Any]:
    """What a head file holds: "store", "seq", "hash" and "signature".

    Raises:
        AuditError: If it cannot be read or is no head file.
    """
    try:
        head = json.loads(path.read_bytes())
    except OSError as e:
        raise AuditError(f"cannot read the head file {path}: {e.strerror or e}") from e
    except (ValueError, RecursionError):
        head = None
    types = {"format": str, "store": str, "seq": int, "hash": str, "signature": str | None}
    if (
        not isinstance(head, dict)
        or head.get("format") != _HEAD_FORMAT
        or any(not isinstance(head.get(n), t) for n, t in types.items())
        or not 0 < head["seq"] < 2**63
    ):
        raise AuditError(f"{path} is not a file that an audit log's head was written to; choose another")
    return head
