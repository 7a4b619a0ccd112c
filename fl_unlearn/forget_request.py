"""What is to be forgotten: the target of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, cast, get_args

from .errors import RequestError

TargetKind = Literal["classes", "client", "samples"]
TARGET_KINDS: tuple[str, ...] = get_args(TargetKind)

Samples = tuple[int, ...] | tuple[str, ...]
"""Samples of one client: positions in its training data set, from 0 up, or the client's own keys for them."""


@dataclass(frozen=True)
class ForgetRequest:
    """What is to be forgotten: classes, everything of some clients, or chosen samples of some clients.

    Attributes:
        classes: The labels to forget, each >= 0, in ascending order without repeats.
        clients: Client names (partition ids, unless the project names its clients otherwise). With classes:
            whose data of these classes is to be forgotten, empty meaning every client that holds them.
            Without: the clients of which everything is to be forgotten.
        reason: Free text for the record.
        samples: Client name to the positions of its samples in its training data set, from 0 up, or to the
            keys (texts) by which it knows them; of one client the one or the other, ascending without
            repeats. Goes with neither classes nor clients.
    """

    classes: tuple[int, ...] = ()
    clients: tuple[str, ...] = ()
    reason: str = ""
    samples: Mapping[str, Samples] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not (self.classes or self.clients or self.samples):
            raise RequestError(
                "a request must name at least one class, client or sample, got none; try classes=(3,)"
            )
        if isinstance(self.clients, str) or not isinstance(self.samples, Mapping):
            raise RequestError(
                "clients is a tuple of names and samples a mapping of name to positions or keys, got "
                f"{self.clients!r} and {self.samples!r}; try clients=('10',)"
            )
        if self.samples and (self.classes or self.clients):
            raise RequestError("samples go with neither classes nor clients; make a request of their own")
        clients = dict.fromkeys(str(c) for c in self.clients)
        samples = {str(c): _samples(str(c), named) for c, named in self.samples.items()}
        object.__setattr__(self, "classes", _whole("a class", self.classes))
        object.__setattr__(self, "clients", tuple(clients))
        object.__setattr__(self, "samples", samples)

    @property
    def kind(self) -> TargetKind:
        """What kind of thing is to be forgotten."""
        return "samples" if self.samples else "classes" if self.classes else "client"

    @property
    def named(self) -> tuple[str, ...]:
        """The clients whose data it is about; empty: everybody's."""
        return self.clients or tuple(self.samples)

    def positions(self, client: str) -> tuple[int, ...]:
        """Positions of one client's samples that the request names; of a client it does not name, none.

        Raises:
            RequestError: If it names them by the client's keys, which only that client can look up.
        """
        named = self.samples.get(client, ())
        if named and isinstance(named[0], str):
            raise RequestError(
                f"the request names {len(named)} samples of client {client!r} by its keys, the first of them "
                f"{named[0]!r}; the client must look up their positions in its data set first"
            )
        return cast(tuple[int, ...], named)

    @classmethod
    def parse(cls, classes: str | int, clients: str = "", reason: str = "") -> ForgetRequest:
        """Build a request from comma-separated text, such as ``"1,9"`` and ``"4,7"``.

        Raises:
            RequestError: If ``classes`` is not a comma-separated list of whole numbers.
        """
        try:
            labels = tuple(int(p) for p in str(classes).split(",") if p.strip())
        except ValueError as e:
            raise RequestError(f"classes must look like '3' or '1,9', got {classes!r}") from e
        return cls(labels, tuple(p.strip() for p in clients.split(",") if p.strip()), reason)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; ``samples`` where some are named: positions as numbers, keys as texts."""
        plain = {"classes": list(self.classes), "clients": list(self.clients), "reason": self.reason}
        return plain | ({"samples": {c: list(r) for c, r in self.samples.items()}} if self.samples else {})

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ForgetRequest:
        """The request that `to_json` gave."""
        rows = {c: tuple(r) for c, r in plain.get("samples", {}).items()}
        return cls(tuple(plain["classes"]), tuple(plain["clients"]), plain["reason"], rows)


def _samples(client: str, named: Any) -> Samples:
    if isinstance(named, str):
        raise RequestError(
            f"the samples of client {client!r} are a tuple of positions or of keys, got {named!r}; "
            f"try {{{client!r}: ({named!r},)}}"
        )
    if not (named := tuple(named)):
        raise RequestError(f"no sample of client {client!r} is named; leave the client out")
    if not any(isinstance(v, str) for v in named):
        return _whole("a sample's position", named)
    if odd := [v for v in named if not isinstance(v, str)]:
        raise RequestError(
            f"the samples of client {client!r} are named by keys and otherwise ({odd[0]!r}); name all of "
            "them by positions (whole numbers), or all by keys (texts)"
        )
    if "" in named:
        raise RequestError(f"a key of a sample is not empty, got '' for client {client!r}")
    return tuple(sorted(set(named)))


def _whole(what: str, values: Iterable[Any]) -> tuple[int, ...]:
    for v in values:
        if isinstance(v, bool) or not hasattr(v, "__index__") or index(v) < 0:
            raise RequestError(f"{what} is a whole number from 0 up, got {v!r}")
    return tuple(sorted({index(v) for v in values}))
