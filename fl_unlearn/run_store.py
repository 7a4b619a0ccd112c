"""Everything a federation's run leaves on disk: the lineage, the checkpoints, the updates applied to them.

One folder: ``lineage.sqlite`` (the UMIG and the ledger of checkpoints), ``updates/``, and ``checkpoints/``
unless these are kept at another address.
A file is written before its row, and a row is never committed for a file that is not there, so that
opening the folder again can always finish or undo what a crash interrupted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.files import make_folder, remove_partial, write_atomically
from fl_unlearn.lineage import UMIG, Node, NodeKind
from fl_unlearn.lineage_file import text
from fl_unlearn.lock import lock_folder
from fl_unlearn.migrate import migrate_checkpoints
from fl_unlearn.operations import OPERATION_TABLES, OperationLedger
from fl_unlearn.store import CheckpointStore, KeepPolicy
from fl_unlearn.tensor_file import Checkpoint, FileInfo
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

log = logging.getLogger(__name__)

DATABASE = "lineage.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS checkpoint (
    node_id INTEGER PRIMARY KEY REFERENCES node(id), digest TEXT NOT NULL, size INTEGER NOT NULL,
    segments BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS alias (owner TEXT PRIMARY KEY, client TEXT NOT NULL);
"""


class RunStore:
    """A run's folder.

    Args:
        folder: The folder, on a local disk; made when absent, unless ``read_only``.
        keep: Which models are kept as checkpoints from now on.
        read_only: Look, do not touch: no recovery, no writing; works while a run writes.
        checkpoints: Where the checkpoints are kept, if not in the folder: any address that fsspec
            understands, such as ``s3://bucket/run``. Remembered; it need be given only once.
        wait: Seconds to wait for another writer to finish.

    Raises:
        StoreError: If the folder holds something else, or cannot be written, or another process is writing.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: KeepPolicy | None = None,
        read_only: bool = False,
        checkpoints: str | None = None,
        wait: float = 0.0,
    ) -> None:
        if "://" in str(folder):
            raise StoreError(
                f"the ledger of a run is an SQLite file and needs a local disk, got {str(folder)!r}; use "
                f"RunStore('some/folder', checkpoints={str(folder)!r}) to keep the checkpoints there"
            )
        self.folder = Path(folder).absolute()
        self.keep = keep or KeepPolicy()
        self._lock: IO[str] | None = None
        self._written: list[list[str]] = []  # for each round that is open, the outermost first
        if read_only and not (self.folder / DATABASE).is_file():
            raise StoreError(f"{self.folder} has no {DATABASE}: it is not the store of a run. Check the path")
        if not read_only:
            try:
                make_folder(self.folder)
                make_folder(self.folder / "updates")
                self._lock = lock_folder(self.folder, wait)
            except OSError as e:
                raise StoreError(f"cannot make the store {self.folder}: {e.strerror or e}") from e
        try:
            self.umig = UMIG(self.folder / DATABASE, read_only=read_only)
        except BaseException:
            if self._lock is not None:
                self._lock.close()  # or whoever handles the error could not try again
            raise
        try:
            self.checkpoints = CheckpointStore(self._address(checkpoints) or self.folder / "checkpoints")
            self.operations = OperationLedger(self.umig, self.checkpoints)
            self._prepare(read_only)
        except BaseException:
            self.close()
            raise

    def _address(self, given: str | None) -> str | None:
        known = self.umig.get_meta("checkpoints")
        if given is None or given == known:
            return known
        if known is not None or len(self.umig):
            raise StoreError(
                f"the checkpoints of {self.folder} are at {known or self.folder / 'checkpoints'}, not at "
                f"{given}; leave out the address, or use another folder for a new run"
            )
        self.umig.set_meta("checkpoints", given)
        return given

    def _prepare(self, read_only: bool) -> None:
        if not read_only:
            with self.umig.transaction():
                for statement in filter(str.strip, (_TABLES + OPERATION_TABLES).split(";")):
                    self._execute(statement)
            migrate_checkpoints(self.umig, self.checkpoints)
            self.recover()
        elif not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'outstanding'").fetchall():
            raise StoreError(f"{self.folder} holds a lineage, but no run was stored there. Check the path")

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database, and let others write."""
        self.umig.close()
        if self._lock is not None:
            self._lock.close()

    # ------------------------------------------------------------------ recording
    @contextmanager
    def round(self) -> Iterator[None]:
        """Everything recorded inside is one transaction; on an error its files are removed again."""
        self._written.append([])
        try:
            with self.umig.transaction():
                yield
                if self._written[-1] and len(self._written) == 1:  # before the rows
                    self.checkpoints.sync()
        except BaseException:
            for name in self._written[-1]:
                with suppress(OSError):  # the first error is the one to report; `recover` removes the file
                    self.checkpoints.delete(name)
            raise
        else:
            if len(self._written) > 1:
                self._written[-2] += self._written[-1]
        finally:
            self._written.pop()

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
                self._written[-1].append(name)
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
                row = (node.id, info.digest, info.size, info.segments)
                self._execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", *row)
        return node

    def prune(self) -> list[str]:
        """Drop the oldest checkpoints until the byte budget holds; returns the names dropped."""
        if self.keep.byte_budget is None:
            return []
        rows = self._execute(
            "SELECT n.name, n.kind, c.size, c.node_id FROM checkpoint c JOIN node n ON n.id = c.node_id "
            "ORDER BY c.node_id"
        ).fetchall()
        newest = max((r[3] for r in rows if r[1] == NodeKind.AGGREGATE), default=-1)
        excess = sum(r[2] for r in rows) - self.keep.byte_budget
        dropped = []
        with self.umig.transaction():
            for name, kind, size, node_id in rows:
                if excess <= 0:
                    break
                if kind == NodeKind.INITIAL or node_id == newest:
                    continue
                self._execute("DELETE FROM checkpoint WHERE node_id = ?", node_id)
                dropped.append(name)
                excess -= size
        for name in dropped:
            self.checkpoints.delete(name)
        if dropped:
            self.checkpoints.sync()
        return dropped

    def check_model(self, signature: Signature, *, remember: bool = False) -> None:
        """Raise ModelMismatchError unless ``signature`` is that of the store's model.

        With ``remember``, an empty store takes it as its own.
        """
        known = self.signature()
        if known is None:
            if remember:
                plain = {n: asdict(s) for n, s in signature.items()}
                self.umig.set_meta("signature", json.dumps(plain))
            return
        difference = signature_difference(known, signature)
        if difference:
            raise ModelMismatchError(
                f"{self.folder} is the store of another model: {difference}. "
                "Use a store of its own for each model architecture"
            )

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
        """What the ledger says of a model's checkpoint; None when none is kept."""
        row = self._execute(
            "SELECT digest, size, segments FROM checkpoint WHERE node_id = ?", self.umig.node(name).id
        ).fetchone()
        return FileInfo(*row) if row else None

    def kept_files(self) -> Iterator[tuple[str, int, FileInfo]]:
        """Name, node id and file of every kept model, oldest first."""
        query = "SELECT n.name, n.id, c.digest, c.size, c.segments FROM checkpoint c JOIN node n "
        for name, node_id, *info in self._execute(query + "ON n.id = c.node_id ORDER BY n.id"):
            yield name, node_id, FileInfo(*info)

    def load(self, name: str) -> Checkpoint:
        """Read a checkpoint and check it against the ledger.

        Raises:
            CorruptCheckpointError: If it is missing, truncated or altered.
            StoreError: If the model was recorded without a checkpoint, or is being changed right now.
        """
        info = self.info(name)
        if info is None:
            raise StoreError(f"no checkpoint was kept for {name!r}; see the keep policy")
        try:
            checkpoint = self.checkpoints.read(name, info.digest)
        except CorruptCheckpointError as e:
            if name not in self.operations.pending() and self.info(name) == info:
                raise
            raise StoreError(
                f"{name!r} is being changed by an operation that is decided and not finished; try again, or, "
                "if no run is writing, open the store for writing once: that finishes it"
            ) from e
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
        write_atomically(path, update.to_bytes())
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

    def recover(self) -> None:
        """Finish committed operations, and remove the files of those that were never committed."""
        remove_partial(self.folder / "updates")
        self.checkpoints.remove_partial()
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
        if not recorded and not waiting:
            return
        with self.umig.transaction():
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
