"""Does a store hold what its audit log says, and is the log whole?

The log is checked link by link and replayed; the database's tables and the files are compared with what comes
out. Without a key, whoever rewrites the database can rewrite the log with it; with the public key they would
have to sign it; and what is cut off at the end is told by the head file alone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fl_unlearn.audit_entry import START, Entry, parse_row, read_head
from fl_unlearn.audit_keys import PublicKey
from fl_unlearn.audit_replay import TABLES, Replay, read_table
from fl_unlearn.lineage import UMIG
from fl_unlearn.run_store import RunStore
from fl_unlearn.store_folder import make_tables
from fl_unlearn.types import StoreError

_MOST = 20  # findings of one sort that are listed one by one


@dataclass(frozen=True)
class Problem:
    """One finding: where, and what is wrong there, in plain words."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class AuditResult:
    """What `verify_store` found.

    Attributes:
        problems: All that is not as the log says; empty for a store in order.
        entries: Entries in the log.
        signed: Of these, how many carry a valid signature of the key that the log names.
        checkpoints: Checkpoint files that were compared with their digest, and match.
        pending: Digests of operations that were decided and not finished: a crash, or a run that is writing.
            Opening the store for writing finishes them.
    """

    problems: tuple[Problem, ...]
    entries: int
    signed: int
    checkpoints: int
    pending: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def verify_store(
    store: RunStore,
    *,
    public_key: PublicKey | None = None,
    head: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditResult:
    """Compare a store with its audit log. Nothing is changed, and whatever is damaged is a finding.

    A run that is writing meanwhile can show files that its log does not tell of yet: verify when it is over.
    So can a crash; the next run removes them. Files of updates that the log does not name are passed over:
    nothing uses them.

    Args:
        store: The store; may be read-only.
        public_key: The key that must have signed the log, from where it was announced to the end.
        head: The file to which the log's head was written.
        progress: Told about checkpoints read and checkpoints in all.
    """
    check = _Check(store, public_key)
    with check.guard("the database"), _snapshot(store):
        with check.guard("the database"):
            check.database()
        with check.guard("the audit log"):
            check.log(head)
        with check.guard("the lineage"):
            check.lineage()
        for table in TABLES:
            with check.guard(f"table {table}"):
                check.table(table)
        with check.guard("the segments"):
            check.segments()
        with check.guard("the updates"):
            check.updates()
        with check.guard("the checkpoints"):
            check.files(progress)
    undone = tuple(d for d, o in check.replay.operations.items() if not o.done)
    return AuditResult(tuple(check.problems), check.entries, check.signed, check.matching, undone)


@contextmanager
def _snapshot(store: RunStore) -> Iterator[None]:
    """See one state of the database, though another process goes on writing."""
    if not store.umig.read_only:  # this process has the only writer
        yield
        return
    connection = store.umig.connection
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@dataclass
class _Check:
    store: RunStore
    public_key: PublicKey | None
    problems: list[Problem] = field(default_factory=list)
    replay: Replay = field(default_factory=Replay)
    entries: int = 0
    signed: int = 0
    matching: int = 0
    _key: PublicKey | None = None
    _store_id: str = ""

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Make a finding of whatever goes wrong inside."""
        try:
            yield
        except Exception as e:  # a damaged database can make anything below fail, in any way
            self.problem(where, f"cannot be read as it should be: {e or type(e).__name__}")

    def problem(self, where: str, what: str) -> None:
        self.problems.append(Problem(where, what))

    def several(self, where: str, what: Collection[str]) -> None:
        for one in sorted(what)[:_MOST]:
            self.problem(where, one)
        if len(what) > _MOST:
            self.problem(where, f"and {len(what) - _MOST} more of this sort")

    # ------------------------------------------------------------------ the database
    def database(self) -> None:
        connection = self.store.umig.connection
        found = [str(r[0]) for r in connection.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            self.several("the database", set(found))
        with UMIG() as fresh:
            make_tables(fresh)
            expected = _schema(fresh.connection)
        actual = _schema(connection)
        for kind, name in sorted(expected.keys() | actual.keys(), key=str):
            if (kind, name) not in actual and expected[kind, name][0] not in self._newer():
                self.problem(f"{kind} {name}", "is missing from the database")
            elif (kind, name) not in expected:
                self.problem(f"{kind} {name}", "does not belong into the database")
            elif (kind, name) in actual and expected[kind, name] != actual[kind, name]:
                self.problem(f"{kind} {name}", "is defined otherwise than this version defines it")

    def _newer(self) -> set[str]:
        """Tables that the older version which wrote this store did not know; they need not be there empty."""
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'document'"
        return set() if self.store.umig.connection.execute(query).fetchall() else {"document"}

    # ------------------------------------------------------------------ the log
    def log(self, head: Path | None) -> None:
        previous, number = START, 0
        told: dict[str, Any] | None = None
        at: Entry | None = None
        if head is not None:
            with self.guard("the head file"):
                told = read_head(head)
        for row in self.store.audit.rows():
            number += 1
            self.entries += 1
            where = f"entry {row[0]}"
            if row[0] != number:
                self.problem(where, f"comes where entry {number} should be; entries were removed or inserted")
                number = row[0]
            try:
                entry = parse_row(row)
            except ValueError as e:
                self.problem(where, f"was changed: {e}")
                previous = row[5]
                continue
            if entry.previous != previous:
                self.problem(where, "does not follow the entry before it, which was changed or exchanged")
            previous = entry.hash
            if told and entry.seq == told["seq"]:
                at = entry
            self._link(where, entry)
        if not self.entries:
            self.problem("the audit log", "has no entries")
        if self.public_key and (self._key is None or self._key.fingerprint != self.public_key.fingerprint):
            self.problem("the audit log", "is not signed with the given key up to its end")
        if told:
            self._head(told, at)

    def _link(self, where: str, entry: Entry) -> None:
        if entry.seq == 1:
            self._store_id = str(entry.body.get("store"))
        if (entry.kind == "created") != (entry.seq == 1):
            self.problem(where, "is not in its place: a log begins with one entry 'created'")
        if entry.kind == "key":
            try:
                self._key = PublicKey.from_pem(entry.body["public_key"])
                if self._key.fingerprint != entry.body["fingerprint"]:
                    raise ValueError("the fingerprint is that of another key")
            except (LookupError, TypeError, AttributeError, ValueError) as e:
                self.problem(where, f"announces a key that cannot be used: {e}")
        if self._key is None and entry.signature is not None:
            self.problem(where, "is signed, but no key was announced before it")
        elif self._key is not None and entry.signature is None:
            self.problem(where, "is not signed, though the log was signed before it")
        elif self._key is not None and entry.signature is not None:
            if self._key.verify(self._store_id, entry.hash, entry.signature):
                self.signed += 1
            else:
                self.problem(where, "has a signature that is not of the announced key")
        try:
            self.replay.apply(entry.kind, entry.body)
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            self.problem(where, f"({entry.kind}) does not fit the entries before it: {type(e).__name__} {e}")

    def _head(self, told: dict[str, Any], at: Entry | None) -> None:
        if told["store"] != self._store_id:
            self.problem("the head file", "belongs to another store, or the log was begun anew")
        elif at is None:
            self.problem(
                "the head file", f"tells of entry {told['seq']}, which the log lacks: it was truncated"
            )
        elif (at.hash, at.signature) != (told["hash"], told["signature"]):
            self.problem("the head file", f"has another hash for entry {at.seq}: the log was rewritten")

    # ------------------------------------------------------------------ the tables
    def lineage(self) -> None:
        umig, next_ = self.store.umig, 1
        for first, last, digest in self.replay.ranges:
            where = f"nodes {first} to {last}"
            if first != next_:
                self.problem(where, f"are recorded where node {next_} should follow")
            next_ = last + 1
            with self.guard(where):
                if (last >= first or digest) and umig.digest(first, last) != digest:
                    self.problem(where, "of the lineage, or the edges to them, were changed")
        for table, low, high in (("node", "id", "id"), ("edge_block", "first", "last")):
            outside = f"{low} < 1 OR {high} > ? OR {low} > {high} OR typeof({high}) <> 'integer'"
            sql = f"SELECT count(*) FROM {table} WHERE {outside}"
            ((count,),) = umig.connection.execute(sql, (next_ - 1,))
            if count:
                self.problem(f"table {table}", f"has {count} rows that the audit log does not tell of")
        owners = "SELECT owner, max(examples) FROM node WHERE owner IS NOT NULL GROUP BY owner"
        kept = umig.connection.execute("SELECT name, examples FROM owner ORDER BY name").fetchall()
        if kept != sorted(umig.connection.execute(owners).fetchall()):
            self.problem("table owner", "differs from what the nodes say")

    def segments(self) -> None:
        """Digests of parts of files: they give the digests of the files, which the log tells of."""
        query = (
            "SELECT 'checkpoint', node_id, digest, segments FROM checkpoint UNION ALL "
            "SELECT 'application', a.node_id, CASE WHEN c.digest = a.before AND NOT o.done THEN a.after END, "
            "a.segments FROM application a JOIN operation o ON o.id = a.operation_id "
            "LEFT JOIN checkpoint c ON c.node_id = a.node_id"
        )
        for kind, node, digest, segments in self.store.umig.connection.execute(query):
            if segments != b"" if digest is None else sha256(segments).hexdigest() != digest:
                self.problem(f"table {kind}", f"has segments for node {node} that are not of its digest")

    def table(self, name: str) -> None:
        absent = name in self._newer()
        actual = Counter([] if absent else read_table(self.store.umig.connection, name))
        expected = Counter(self.replay.table(name))
        self.several(f"table {name}", [f"lacks {_row(r)}, of which the log tells" for r in expected - actual])
        self.several(
            f"table {name}", [f"has {_row(r)}, of which the log does not tell" for r in actual - expected]
        )

    # ------------------------------------------------------------------ the files
    def updates(self) -> None:
        logged = self.replay.updates
        needed = {o.client_update for o in self.replay.operations.values()}
        for digest in sorted(logged.keys() | needed):
            where = f"update {digest}"
            with self.guard(where):
                self.store.update(digest)
                path = self.store.folder / "updates" / f"{digest}.safetensors"
                if digest in logged and sha256(path.read_bytes()).hexdigest() != logged[digest]:
                    self.problem(where, "has a file that was changed since it was written")

    def files(self, progress: Callable[[int, int], None] | None) -> None:
        store, expected = self.store, self.replay.checkpoints
        strange = store.checkpoints.names() - set(expected)
        self.several(
            "the checkpoints", [f"{name!r} has a file that the log does not tell of" for name in strange]
        )
        successors = {
            name: after
            for operation in self.replay.operations.values()
            for name, (_, after, _) in operation.files.items()
            if not operation.done
        }
        for done, name in enumerate(sorted(expected), start=1):
            with self.guard(f"checkpoint {name!r}"):
                try:
                    found = store.load(name).info.digest
                except StoreError:
                    if name not in successors:
                        raise
                    # Decided, and in place or on the way, while the ledger does not say so yet.
                    found = store.checkpoints.successor(name).digest
                if found not in (expected[name][0], successors.get(name)):
                    self.problem(f"checkpoint {name!r}", f"has the digest {found}, the log says another")
                else:
                    self.matching += 1
            if progress:
                progress(done, len(expected))


def _schema(connection: sqlite3.Connection) -> dict[tuple[str, str], Any]:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    # sqlite_stat1 and its like are the query planner's own.
    return {
        (kind, name): (table, " ".join(str(sql).split()))
        for kind, name, table, sql in rows
        if not str(name).startswith("sqlite_stat")
    }


def _row(row: tuple[Any, ...]) -> str:
    text = ", ".join(str(v) for v in row)
    return f"({text if len(text) <= 200 else text[:200] + '...'})"
