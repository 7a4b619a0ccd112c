"""Requesters with keys and a policy, documents that they sign, and stores to ask."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.policy import Policy
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest

POLICY = """
[[requester]]
name = "operator"
key = "operator.pem.pub"
classes = "any"

[[requester]]
name = "hospital"
key = "hospital.pem.pub"
clients = ["1"]
"""


@dataclass
class Office:
    """Two requesters: the operator, for classes, and a hospital, for its own data (client "1")."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keys = {n: SigningKey.generate(self.folder / f"{n}.pem") for n in ("operator", "hospital")}
        self.path = self.folder / "policy.toml"
        self.path.write_text(POLICY)
        self.policy = Policy.read(self.path)

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def document(
        self,
        request: ForgetRequest,
        requester: str = "operator",
        *,
        key: str | None = "",
        now: datetime | None = None,
        **about: Any,
    ) -> RequestDocument:
        """A document signed by its requester, by another ``key``, or by nobody (None)."""
        document = RequestDocument.new(requester, request, now=now, **about)
        return document if key is None else document.sign(self.keys[key or requester])


def soon(hours: float = 1.0) -> datetime:
    return (datetime.now(UTC) + timedelta(hours=hours)).replace(microsecond=0)


def later(store: RunStore, hours: float) -> None:
    """Let the store's clock be ahead."""
    store.audit.clock = lambda: datetime.now(UTC) + timedelta(hours=hours)


def states(store: RunStore) -> list[tuple[str, str | None]]:
    return [(row.state, row.code) for row in store.documents.rows()]
