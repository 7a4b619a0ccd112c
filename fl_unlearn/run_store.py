"""Everything a federation's run leaves on disk: the lineage, the checkpoints, the updates applied to them.

One folder: ``lineage.sqlite`` (the UMIG and the ledger of checkpoints), ``checkpoints/``, ``updates/``.
A file is written before its row, and a row is never committed for a file that is not there, so that
opening the folder again can always finish or undo what a crash interrupted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from fl_unlearn.audit import AUDIT_TABLES, AuditLog, SigningKey
from fl_unlearn.audit_entry import text_digest
from fl_unlearn.audit_replay import snapshot
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.lineage import UMIG, Node, NodeKind
from fl_unlearn.lineage_file import text
from fl_unlearn.operations import OPERATION_TABLES, OperationLedger
from fl_unlearn.store import (
    Checkpoint,
    CheckpointStore,
    FileInfo,
    KeepPolicy,
    remove_partial,
    write_atomically,
)
from fl_unlearn.types import (
    CorruptCheckpointError,
    LineageError,
    ModelMismatchError,
    Signature,
    StateDict,
    StoreError,
    TensorSpec,
    UpdateError,
    signature_difference,
    signature_of,
)

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; there, one writer is up to the operator
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

DATABASE = "lineage.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS checkpoint (
    node_id INTEGER PRIMARY KEY REFERENCES node(id), digest TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS alias (owner TEXT PRIMARY KEY, client TEXT NOT NULL);
"""


def make_tables(umig: UMIG) -> None:
    """Make the tables of a run beside the lineage's, where they are not there yet."""
    for statement in filter(str.strip, (_TABLES + OPERATION_TABLES + AUDIT_TABLES).split(";")):
        umig.connection.execute(statement)


def _lock(folder: Path) -> IO[str]:
    """Keep other processes from writing here; the system lets go of it when this one ends, however it does.

    Raises:
        StoreError: If another writer has it.
    """
    file = open(folder / ".lock", "w")  # noqa: SIM115 (held until the store is closed)
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.close()
            raise StoreError(
                f"{folder} is being written by another run; wait until it is over, or open it read-only"
            ) from e
    return file


class RunStore:
    """A run's folder.

    Args:
        folder: The folder; made when absent, unless ``read_only``.
        keep: Which models are kept as checkpoints from now on.
        read_only: Look, do not touch: no recovery, no writing; works while a run writes.
        signing_key: File of the key that signs the audit log (`audit.SigningKey.generate` makes one).
        audit_head: File, best on another machine's disk, to which the log's newest hash is written.

    Raises:
        StoreError: If the folder holds something else, or cannot be written.
        AuditError: If the key or the head file does not fit the store's audit log.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: KeepPolicy | None = None,
        read_only: bool = False,
        signing_key: str | Path | None = None,
        audit_head: str | Path | None = None,
    ) -> None:
        key = SigningKey.load(signing_key) if signing_key is not None and not read_only else None
        self.folder = Path(folder).absolute()
        self.keep = keep or KeepPolicy()
        self._lock: IO[str] | None = None
        if read_only and not (self.folder / DATABASE).is_file():
            raise StoreError(f"{self.folder} has no {DATABASE}: it is not the store of a run. Check the path")
        if not read_only:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "updates").mkdir(exist_ok=True)
                self._lock = _lock(self.folder)
            except OSError as e:
                raise StoreError(f"cannot make the store {self.folder}: {e.strerror or e}") from e
        try:
            self.umig = UMIG(self.folder / DATABASE, read_only=read_only)
        except (sqlite3.Error, UnicodeDecodeError) as e:  # the latter: of a message about a damaged schema
            raise StoreError(f"{self.folder / DATABASE} is damaged ({e}); restore it from a backup") from e
        self.checkpoints = CheckpointStore(self.folder / "checkpoints")
        self.audit = AuditLog(self.umig, key=key, head=Path(audit_head) if audit_head is not None else None)
        self.operations = OperationLedger(self.umig, self.checkpoints, self.audit)
        self._written: list[str] = []
        if not read_only:
            try:
                with self.umig.transaction():
                    make_tables(self.umig)
                    self.audit.start(lambda: snapshot(self.umig))
                self.recover()
                self.audit.publish()
            except BaseException:
                self.close()  # or the lock would be held for as long as the error is
                raise
        elif not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'outstanding'").fetchall():
            self.close()
            raise StoreError(f"{self.folder} holds a lineage, but no run was stored there. Check the path")

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database, and let others write."""
        self.audit.publish()
        self.umig.close()
        if self._lock is not None:
            self._lock.close()

    # ------------------------------------------------------------------ recording
    @contextmanager
    def round(self) -> Iterator[None]:
        """Everything recorded inside is one transaction; on an error its files are removed again."""
        outer, self._written = self._written, []
        try:
            with self.umig.transaction(), self.audit.recording():
                yield
        except BaseException:
            for name in self._written:
                with suppress(OSError):  # the first error is the one to report; `recover` removes the file
                    self.checkpoints.delete(name)
            raise
        else:
            outer.extend(self._written)
        finally:
            self._written = outer
        self.audit.publish()  # not above: an interruption here must not remove files that are committed

    def record(
        self,
        name: str,
        state: StateDict | None,
        *,
        kind: str,
        round_: int,
        parents: Mapping[str, float] | None = None,
        owner: str | None = None,
        examples: int | None = None,
        applied: tuple[str, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Node:
        """Append one model to the UMIG, and keep its checkpoint when the policy says so.

        Without ``state`` the node alone is recorded.

        Raises:
            ModelMismatchError: If the model's tensors differ in name or shape from the store's.
            LineageError: If the node does not fit the graph.
            StoreFullError: If the disk is full; neither the node nor a file is left behind.
        """
        with self.round():
            if text("a name", name) in self.umig:
                raise LineageError(f"the model {name!r} is recorded already; nodes are never rewritten")
            info = None
            if state is not None:
                self.check_model(signature_of(state), remember=True)
            if state is not None and self.keep.keeps(kind, round_):
                self._written.append(name)
                info = self.checkpoints.write(name, state, applied)
            node = self.umig.add(
                name,
                kind=kind,
                round=round_,
                parents=dict(parents or {}),
                owner=owner,
                examples=examples,
                digest=info.digest if info else None,
                metadata=dict(metadata or {}),
            )
            if info:
                self._execute("INSERT INTO checkpoint VALUES (?, ?, ?)", node.id, info.digest, info.size)
        return node

    def prunable(self) -> list[tuple[str, int]]:
        """Names and bytes of the checkpoints that `prune` would drop now, oldest first."""
        kept = "checkpoint c JOIN node n ON n.id = c.node_id"
        query = f"SELECT n.name, n.kind, c.size FROM {kept} ORDER BY n.id"
        rows = self._execute(query).fetchall() if self.keep.byte_budget is not None else []
        newest = max((i for i, row in enumerate(rows) if row[1] == NodeKind.AGGREGATE), default=-1)
        excess = sum(size for *_, size in rows) - (self.keep.byte_budget or 0)
        chosen = []
        for i, (name, kind, size) in enumerate(rows):
            if excess > 0 and kind != NodeKind.INITIAL and i != newest:
                chosen.append((name, size))
                excess -= size
        return chosen

    def prune(self) -> list[str]:
        """Drop the oldest checkpoints until the byte budget holds; returns the names dropped."""
        dropped = [name for name, _ in self.prunable()]
        if dropped:
            drop = "DELETE FROM checkpoint WHERE node_id = (SELECT id FROM node WHERE name = ?)"
            with self.audit.transaction():
                self.umig.connection.executemany(drop, ((name,) for name in dropped))
                self.audit.append("pruned", {"checkpoints": dropped})
        for name in dropped:
            self.checkpoints.delete(name)
        return dropped

    def check_model(self, signature: Signature, *, remember: bool = False) -> None:
        """Raise ModelMismatchError unless ``signature`` is that of the store's model.

        With ``remember``, an empty store takes it as its own.
        """
        known = self.signature()
        if known is None:
            if remember:
                plain = {n: asdict(s) for n, s in signature.items()}
                self.set_meta("signature", json.dumps(plain))
            return
        difference = signature_difference(known, signature)
        if difference:
            raise ModelMismatchError(
                f"{self.folder} is the store of another model: {difference}. "
                "Use a store of its own for each model architecture"
            )

    def set_meta(self, key: str, value: str) -> None:
        """`UMIG.set_meta`, with an entry in the audit log."""
        with self.audit.transaction():
            self.umig.set_meta(key, value)
            self.audit.append("noted", {"key": key, "value_sha256": text_digest(value)})

    def signature(self) -> dict[str, TensorSpec] | None:
        """Names, shapes and dtypes of the store's model; None while it holds none."""
        plain = self.umig.get_meta("signature")
        if plain is None:
            return None
        return {n: TensorSpec(tuple(s["shape"]), s["dtype"]) for n, s in json.loads(plain).items()}

    # ------------------------------------------------------------------ reading
    def kept(self) -> set[str]:
        """Names of the models that have a checkpoint."""
        query = "SELECT n.name FROM checkpoint c JOIN node n ON n.id = c.node_id"
        return {r[0] for r in self._execute(query)}

    def info(self, name: str) -> FileInfo | None:
        """Digest and size that the ledger has for a model's checkpoint; None when none is kept."""
        row = self._execute(
            "SELECT digest, size FROM checkpoint WHERE node_id = ?", self.umig.node(name).id
        ).fetchone()
        return FileInfo(*row) if row else None

    def load(self, name: str) -> Checkpoint:
        """Read a checkpoint and check it against the ledger.

        Raises:
            CorruptCheckpointError: If it is missing, truncated or altered.
            StoreError: If the model was recorded without a checkpoint.
        """
        info = self.info(name)
        if info is None:
            raise StoreError(f"no checkpoint was kept for {name!r}; see the keep policy")
        checkpoint = self.checkpoints.read(name, info.digest)
        # safetensors sorts its tensors; strategies that keep plain lists rely on the model's own order.
        order = [n for n in self.signature() or {} if n in checkpoint.state]
        return replace(checkpoint, state={n: checkpoint.state[n] for n in (*order, *checkpoint.state)})

    def latest(self) -> tuple[Node, Checkpoint]:
        """The newest global model that has a checkpoint.

        Raises:
            StoreError: If there is none.
        """
        row = self._execute(
            "SELECT n.name FROM checkpoint c JOIN node n ON n.id = c.node_id WHERE n.kind IN (?, ?) "
            "ORDER BY n.id DESC LIMIT 1",
            NodeKind.AGGREGATE,
            NodeKind.INITIAL,
        ).fetchone()
        if row is None:
            raise StoreError(f"{self.folder} holds no global model; train with this store first")
        return self.umig.node(row[0]), self.load(row[0])

    # ------------------------------------------------------------------ updates
    def save_update(self, update: DampeningUpdate) -> Path:
        """Keep an update's file, ``updates/<digest>.safetensors``."""
        path = self.folder / "updates" / f"{update.digest}.safetensors"
        info = write_atomically(path, update.to_bytes())
        self.audit.append("kept", {"update": update.digest, "sha256": info.digest})
        return path

    def update(self, digest: str) -> DampeningUpdate:
        """Read an update that was kept.

        Raises:
            CorruptCheckpointError: If its file is missing or was changed.
        """
        path = self.folder / "updates" / f"{digest}.safetensors"
        try:
            update = DampeningUpdate.from_bytes(path.read_bytes())
        except FileNotFoundError as e:
            raise CorruptCheckpointError(f"the update {path} is missing; restore it from a backup") from e
        except UpdateError as e:
            raise CorruptCheckpointError(f"the update {path} was truncated or changed: {e}") from e
        if update.digest != digest:
            raise CorruptCheckpointError(f"the update {path} was changed: its digest is {update.digest[:12]}")
        return update

    def drop_updates(self, digests: Collection[str]) -> None:
        """Remove the files of updates that nothing needs any more."""
        if digests:
            self.audit.append("pruned", {"updates": sorted(digests)})
        for digest in digests:
            (self.folder / "updates" / f"{digest}.safetensors").unlink(missing_ok=True)

    def recover(self) -> None:
        """Finish committed operations, and remove the files of those that were never committed."""
        for folder in (self.checkpoints.folder, self.folder / "updates"):
            remove_partial(folder)
        self.operations.finish()
        for name in sorted(self.checkpoints.staged_names()):
            log.warning("undoing an application that was interrupted before it was decided: %s", name)
            self.checkpoints.discard(name)
        for name in sorted(self.checkpoints.names() - self.kept()):
            log.warning(
                "removing a checkpoint that was written for a round that was never recorded: %s", name
            )
            self.checkpoints.delete(name)

    # ------------------------------------------------------------------ who is who
    def identify(self, owner: str, client: str) -> None:
        """Remember that what is recorded under ``owner``, if anything is, is this client's."""
        recorded = any(True for _ in self.umig.nodes(owner=owner))
        waiting = self._execute("SELECT 1 FROM outstanding WHERE client = ?", owner).fetchone()
        known = self._execute("SELECT client FROM alias WHERE owner = ?", owner).fetchone()
        if not waiting and (not recorded or known == (client,)):
            return
        with self.audit.transaction():
            self.audit.append("identified", {"owner": owner, "client": client, "recorded": recorded})
            if recorded:
                self._execute("INSERT OR REPLACE INTO alias VALUES (?, ?)", owner, client)
            self._execute("UPDATE OR IGNORE outstanding SET client = ? WHERE client = ?", client, owner)
            self._execute("DELETE FROM outstanding WHERE client = ?", owner)

    def examples(self) -> dict[str, int]:
        """Client name to the largest number of examples that one of its updates was trained on."""
        names = self.clients()
        rows = self._execute("SELECT owner, MAX(examples) FROM node WHERE owner IS NOT NULL GROUP BY owner")
        return {names[owner]: most for owner, most in rows if most is not None}

    def clients(self) -> dict[str, str]:
        """Owner as recorded in the UMIG to client name; an owner never identified maps to itself."""
        known = dict(self._execute("SELECT owner, client FROM alias").fetchall())
        return {owner: known.get(owner, owner) for owner in self.umig.owners()}

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)
