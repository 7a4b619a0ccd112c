"""What a request names of one client's training samples, and how that client, and no other, is told.

A client learns of requests for clients or samples only what they name of its own data. Positions count the
samples in the order of its training loader; keys are its own names for them, which it looks up itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_unlearn.types import AnswerError, ForgetRequest, RequestError

NAMED, LEFT_OUT = "named", "left-out"
"""Keys in a question: what a request for a client or samples names of the client that is asked, and what
earlier ones named of it. Neither is there where all clients are asked the same."""

Keys = Sequence[str] | Mapping[str, int]
"""A client's keys of its training samples, in the order of its training loader's data set (a key that stands
there several times is of all these samples), or each key's position there."""

MAX_NAMED = 10**7
"""Samples that one request may name of one client."""


@dataclass(frozen=True)
class Share:
    """What is named of one client's training samples.

    Attributes:
        all: Whether all of them are.
        positions: Positions in its training data, from 0 up, in the order of its loader.
        keys: Its own keys of samples.
    """

    all: bool = False
    positions: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.all or bool(self.positions or self.keys)

    def __or__(self, other: Share) -> Share:
        """What either names."""
        return Share(
            self.all or other.all,
            tuple(sorted({*self.positions, *other.positions})),
            tuple(sorted({*self.keys, *other.keys})),
        )

    @classmethod
    def of(cls, request: ForgetRequest, client: str) -> Share:
        """What a request for clients or samples names of a client; one for classes names nothing here."""
        if request.kind != "samples":
            return cls(all=request.kind == "client" and client in request.clients)
        positions, keys = [], []
        for one in request.samples.get(client, ()):
            if isinstance(one, str):
                keys.append(one)
            else:
                positions.append(one)
        return cls(False, tuple(positions), tuple(keys))

    def located(self, keys: Keys | None) -> Share:
        """The same samples, all of them by position.

        Args:
            keys: The client's keys of its training samples; None: it has none.

        Raises:
            RequestError: If there are no keys, or one is unknown; the known ones are not told.
        """
        if not self.keys:
            return self
        if keys is None:
            raise RequestError(
                "the request names samples by key, and this client has nothing to look keys up in; give "
                "`sample_keys` to `attach`, or name the samples by position"
            )
        if isinstance(keys, Mapping):
            at = {str(key): [int(position)] for key, position in keys.items()}
        else:
            at = {}
            for position, key in enumerate(keys):
                at.setdefault(str(key), []).append(position)
        if unknown := [key for key in self.keys if key not in at]:
            raise RequestError(
                f"{len(unknown)} of {len(self.keys)} keys that the request names are of no training sample "
                f"of this client, the first of them {unknown[0]!r}"
            )
        found = {position for key in self.keys for position in at[key]}
        if min(found) < 0:
            raise RequestError("`sample_keys` of this client gives a position below 0; they count from 0 up")
        return Share(self.all, tuple(sorted({*self.positions, *found})))

    def kept(self, count: int, keys: Keys | None = None) -> list[int]:
        """Positions of those of ``count`` samples that are not named, ascending.

        Raises:
            RequestError: As `located`.
        """
        named = set(self.located(keys).positions)
        return [] if self.all else [i for i in range(count) if i not in named]

    def to_text(self) -> str:
        """As JSON, short."""
        plain = {"all": self.all, "positions": self.positions, "keys": self.keys}
        return json.dumps({name: value for name, value in plain.items() if value})

    @classmethod
    def from_text(cls, text: object) -> Share:
        """What `to_text` gave.

        Raises:
            AnswerError: If it is anything else.
        """
        try:
            plain = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            plain = None
        if not isinstance(plain, dict) or not plain.keys() <= {"all", "positions", "keys"}:
            raise AnswerError(f"what is named of a client's samples cannot be read: {str(text)[:100]!r}")
        every, positions, keys = plain.get("all", False), plain.get("positions", []), plain.get("keys", [])
        rows = isinstance(positions, list) and all(type(p) is int and 0 <= p < 2**63 for p in positions)
        texts = isinstance(keys, list) and all(isinstance(k, str) for k in keys)
        if not isinstance(every, bool) or not rows or not texts or len(positions) + len(keys) > MAX_NAMED:
            raise AnswerError(f"what is named of a client's samples makes no sense: {str(text)[:100]!r}")
        return cls(every, tuple(sorted(set(positions))), tuple(sorted(set(keys))))


@dataclass(frozen=True)
class Targets:
    """What each client is told of a request beside what all are.

    Attributes:
        request: The request.
        earlier: Requests for clients or samples that were served before, of which later ones are to see
            nothing: neither as forgotten nor as retained.
    """

    request: ForgetRequest
    earlier: tuple[ForgetRequest, ...] = field(default=())

    @classmethod
    def after(cls, request: ForgetRequest, operations: Iterable[Mapping[str, Any]]) -> Targets:
        """A request, after the operations that these requests of the ledger led to."""
        earlier = (ForgetRequest.from_json(o) for o in operations)
        return cls(request, tuple(r for r in earlier if r.kind != "classes"))

    @property
    def personal(self) -> bool:
        """Whether clients are to be told different things."""
        return self.request.kind != "classes" or bool(self.earlier)

    def told(self, client: str) -> dict[str, str]:
        """What is added to a question to this client."""
        out, left = {}, Share()
        if self.request.kind != "classes":
            out[NAMED] = Share.of(self.request, client).to_text()
        for request in self.earlier:
            left |= Share.of(request, client)
        return out | ({LEFT_OUT: left.to_text()} if left else {})
