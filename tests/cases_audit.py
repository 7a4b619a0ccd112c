"""A store with something of everything in its audit log, and ways to tamper with its database."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import runs
from references_audit import entry_hash

from fl_unlearn.apply import stage
from fl_unlearn.audit import PublicKey, SigningKey
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.intake import take_in
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import DATABASE, RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, StoreError

A, B = runs.update(0), runs.update(1)
TABLES = (
    "node",
    "edge_block",
    "owner",
    "meta",
    "checkpoint",
    "operation",
    "application",
    "outstanding",
    "alias",
    "document",
    "audit",
)
Row = tuple[Any, ...]


def forget(store: RunStore, number: int, update: DampeningUpdate, names: list[str]) -> None:
    """One request, served: what a session writes, from the request to the receipts."""
    request = {"request": number, "classes": [number]}
    store.audit.append("request", request)
    stage(store, dict.fromkeys(names, update), update, workers=1).commit(request, ["0", "1", "node-7"])
    store.operations.settle(update.digest, "0", ["2 copies dampened", "Zürich \ud800"])
    store.audit.append("verified", {"request": number, "accuracy": 0.25})


def prune(store: RunStore) -> None:
    sizes = sum(info.size for n in store.kept() if (info := store.info(n)))
    store.keep = KeepPolicy(client_updates=True, byte_budget=sizes - 1)
    assert len(store.prune()) == 1


def take_documents(store: RunStore) -> None:
    """One that is accepted, since there is no policy, and one that is refused."""
    asked = RequestDocument.new("operator", ForgetRequest((3,)))
    for data in (asked.to_bytes(), b"nonsense"):
        store.inbox.add(data)
    take_in(store)


STEPS: tuple[Callable[[RunStore], object], ...] = (
    lambda store: store.record("g0", runs.state(100), kind="initial", round_=0),
    lambda store: runs.write_round(store, 1),
    lambda store: runs.write_round(store, 2),
    lambda store: store.set_meta("data", "shared out evenly"),
    lambda store: forget(store, 1, A, ["r1-0", "g1", "g2"]),
    lambda store: store.identify("0", "hospital"),
    lambda store: store.identify("node-7", "clinic"),
    lambda store: forget(store, 2, B, ["g1", "r2-1"]),
    prune,
    lambda store: store.operations.settle(B.digest, "1"),
    take_documents,
)


class Template:
    """A finished store below ``folder``, what it was after each step, its key and its head file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.head, key = folder / "store", folder / "head.json", folder / "key.pem"
        self.key = SigningKey.generate(key)
        self.earlier: list[Path] = []
        for number, step in enumerate(STEPS):
            with RunStore(self.folder, keep=runs.ALL, signing_key=key, audit_head=self.head) as store:
                step(store)
            self.earlier.append(folder / f"after-{number}")
            shutil.copytree(self.folder, self.earlier[-1])

    def copy(self, to: Path) -> Path:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        return to


def findings(folder: Path, key: PublicKey | None = None, head: Path | None = None) -> list[str]:
    """All that is found wrong with a store: it cannot be opened, or what `verify_store` says."""
    try:
        with RunStore(folder, read_only=True) as store:
            return [str(p) for p in verify_store(store, public_key=key, head=head).problems]
    except StoreError as e:
        return [str(e)]


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database of a store, as anyone may open it."""
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


def rows(folder: Path, table: str) -> list[Row]:
    with database(folder) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def replace(folder: Path, table: str, new: list[Row]) -> None:
    with database(folder) as connection:
        connection.execute("BEGIN")
        connection.execute(f"DELETE FROM {table}")
        for row in new:
            connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
        connection.execute("COMMIT")


def dump(folder: Path) -> list[tuple[str, str]]:
    """All that the database says, types included; how much space is left between SQL's words says nothing."""
    with database(folder) as connection:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        said = [("schema", repr(sorted((*row[:3], *str(row[3]).split()) for row in schema)))]
        for table in TABLES:
            said.append((table, repr(sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))))))
    return said


def rechained(entries: list[Row], sign: Callable[[str], str | None]) -> list[Row]:
    """Numbers and hashes made to fit again, as someone would who wants a change not to be seen."""
    previous, new = "0" * 64, []
    for seq, (_, time, kind, body, *_) in enumerate(entries, start=1):
        entry = {"seq": seq, "time": time, "kind": kind, "body": json.loads(body), "previous": previous}
        hash_ = entry_hash(entry)
        new.append((seq, time, kind, body, previous, hash_, sign(hash_)))
        previous = hash_
    return new


def copy_once(template: Template, folder: Path) -> None:
    """A copy that many examples share; each puts back what it changes."""
    if not folder.exists():
        template.copy(folder)
