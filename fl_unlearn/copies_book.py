"""What a client remembers of the models that it keeps on its disk: where they are, and what each has had."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fl_unlearn.types import StoreError

Receipt = dict[str, str]
"""What became of one copy: "copy" (its name), "status", and where it was read "before" and "after"."""

FAILED = "failed: "

_FORMAT = "fl-unlearn copies 1"
_LONGEST_NAME = 60


@dataclass
class Copy:
    """One copy.

    Attributes:
        path: Where it is.
        name: What receipts call it: they go to the server, which the path is no business of.
        has: Digests of the updates that its model has had.
        receipts: Update to what became of the copy.
        told: Update to the one with whose answer its receipt first went to the server.
        dropped: Whether it is no longer kept, and only waits for that to be told.
    """

    path: str
    name: str
    has: list[str]
    receipts: dict[str, Receipt] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    dropped: bool = False


@dataclass
class Book:
    """All that a client remembers of its copies.

    Attributes:
        updates: Digests of the updates that the client was told of, in that order.
        copies: The copies.
        model: Names and shapes of the project's model, as of the last update.
        pending: The change that is about to be made to one copy, if any.
        store: Whose updates they are: the id of the server's store; "" before the first.
        told_in: Update to the Flower run in which the client was told of it.
    """

    updates: list[str] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    model: dict[str, list[Any]] = field(default_factory=dict)
    pending: dict[str, Any] | None = None
    store: str = ""
    told_in: dict[str, int] = field(default_factory=dict)

    def find(self, path: Path) -> Copy | None:
        """The copy at a path."""
        return next((c for c in self.copies if c.path == str(path)), None)

    def name_for(self, path: Path, name: str | None) -> str:
        """A name that no other copy has."""
        base = (name or path.name)[:_LONGEST_NAME]
        base = "".join(c if c.isprintable() else "?" for c in base)
        names, number = {c.name for c in self.copies}, 1
        while (own := base if number == 1 else f"{base} ({number})") in names:
            number += 1
        return own

    def to_bytes(self) -> bytes:
        """As the file holds it."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: Path) -> Book:
        """Read what `to_bytes` gave.

        Raises:
            StoreError: If it is something else.
        """
        try:
            fields = json.loads(data)
            if fields.pop("format") != _FORMAT:
                raise ValueError("its format is another")
            return cls(**{**fields, "copies": [Copy(**c) for c in fields["copies"]]})
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise StoreError(
                f"{source} is damaged ({e}); restore it from a backup, or remove it: the copies must then be "
                "registered again, and what they had of earlier updates is not known"
            ) from e
