"""What must become of a request document, said once more: slow and obvious, without the library's code.

The form is checked with the shipped JSON Schema and jsonschema; a signature is genuine when it is in a list
of those that were made, so that no cryptography is trusted here; rights are looked up pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema

import fl_unlearn

SCHEMA = Path(fl_unlearn.__file__).with_name("request_schema.json")
_VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
MOST_BYTES = 1_048_576
MOST_SAMPLES = 100_000


@dataclass(frozen=True)
class Rights:
    """What one requester may ask for (None: anything), and the fingerprint of its key."""

    key: str
    classes: Iterable[int] | None = ()
    clients: Iterable[str] | None = ()


@dataclass
class Rules:
    """One policy, and everything that was signed under it.

    Attributes:
        rights: By requester.
        max_age: Age from which a document is expired.
        federation: What documents must be meant for.
        signed: Fingerprint, content and signature of every document that was signed with its requester's key.
    """

    rights: Mapping[str, Rights]
    max_age: timedelta
    federation: str
    signed: set[tuple[str, str, str]] = field(default_factory=set)

    def expected(self, data: bytes, now: datetime, seen: Iterable[str]) -> str:
        """What must become of it: "accepted", "malformed", or the code of the refusal."""
        plain = well_formed(data)
        if plain is None:
            return "malformed"
        if plain["signature"] is None:
            return "unsigned"
        if plain["requester"] not in self.rights:
            return "unknown-requester"
        rights = self.rights[plain["requester"]]
        if plain["signature"]["key"] != rights.key:
            return "wrong-key"
        if (rights.key, content(plain), plain["signature"]["value"]) not in self.signed:
            return "forged"
        if plain["federation"] != self.federation:
            return "wrong-federation"
        if plain["id"] in seen:
            return "replayed"
        if (refusal := self._untimely(plain, now)) is not None:
            return refusal
        return "accepted" if all(_may(rights, *pair) for pair in _pairs(plain["target"])) else "not-allowed"

    def _untimely(self, plain: dict[str, Any], now: datetime) -> str | None:
        created = _time(plain["created"])
        if created > now + timedelta(minutes=5):
            return "from-the-future"
        late = plain["deadline"] is not None and now >= _time(plain["deadline"])
        return "expired" if late or now > created + self.max_age else None


def _pairs(target: dict[str, Any]) -> Iterator[tuple[int | None, str | None]]:
    """Class and client of everything that is named; None for all classes, or for everybody."""
    for label in target["classes"] or [None]:
        for client in [*target["clients"], *target["samples"]] or [None]:
            yield label, client


def _may(rights: Rights, label: int | None, client: str | None) -> bool:
    of_class = label is not None and (rights.classes is None or label in rights.classes)
    of_client = client is not None and (rights.clients is None or client in rights.clients)
    return of_class or of_client


# --------------------------------------------------------------------------- the form
def content(plain: dict[str, Any]) -> str:
    """What a signature is for, as one text."""
    return json.dumps({n: v for n, v in plain.items() if n != "signature"}, sort_keys=True)


def well_formed(data: bytes) -> dict[str, Any] | None:
    """The document, or None if it has any flaw in its form."""
    if len(data) > MOST_BYTES:
        return None
    odd: list[Any] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        odd.extend([found] if len({name for name, _ in found}) < len(found) else [])
        return dict(found)

    try:
        plain = json.loads(
            data.decode(), object_pairs_hook=pairs, parse_float=odd.append, parse_constant=odd.append
        )
    except (ValueError, RecursionError):
        return None
    if odd or not _VALIDATOR.is_valid(plain) or len(json.dumps(plain, separators=(",", ":"))) > MOST_BYTES:
        return None
    return plain if _beyond_schema(plain) else None


def _beyond_schema(plain: dict[str, Any]) -> bool:
    """What the schema cannot say."""
    target = plain["target"]
    lists = [target["classes"], *target["samples"].values()]
    texts = [
        plain["requester"],
        plain["reason"],
        plain["federation"] or "",
        plain["scope"] or "",
        *target["clients"],
        *target["samples"],
    ]
    texts += [key for named in target["samples"].values() for key in named if isinstance(key, str)]
    try:
        times = [_time(plain[name]) for name in ("created", "deadline") if plain[name] is not None]
    except ValueError:
        return False
    return (
        all(named == sorted(set(named)) for named in lists)
        and all(character.isprintable() for text in texts for character in text)
        and times == sorted(set(times))
        and sum(len(named) for named in target["samples"].values()) <= MOST_SAMPLES
    )


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
