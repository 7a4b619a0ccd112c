"""Everything a federation's run leaves on disk: the lineage, the checkpoints, the updates applied to them.

A file is written before its row, and a row is never committed for a file that is not there, so that
opening the folder again (`store_folder`) can always finish or undo what a crash interrupted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.files import write_atomically
from fl_unlearn.lineage import Node, NodeKind
from fl_unlearn.lineage_file import text
from fl_unlearn.store_folder import DATABASE as DATABASE
from fl_unlearn.store_folder import StoreFolder
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


class RunStore(StoreFolder):
    """A run's folder.

    Args:
        folder: The folder, on a local disk; made when absent, unless ``read_only``.
        keep: Which models are kept as checkpoints from now on.
        read_only: Look, do not touch: no recovery, no writing; works while a run writes.
        checkpoints: Where the checkpoints are kept, if not in the folder: any address that fsspec
            understands, such as ``s3://bucket/run``. Remembered; it need be given only once.
        wait: Seconds to wait for another writer to finish.
        signing_key: File of the key that signs the audit log (`audit.SigningKey.generate` makes one).
        audit_head: File, best on another machine's disk, to which the log's newest hash is written.

    Raises:
        StoreError: If the folder holds something else, or cannot be written, or another process is writing.
        AuditError: If the key or the head file does not fit the store's audit log.
    """

    # ------------------------------------------------------------------ recording
    @contextmanager
    def round(self) -> Iterator[None]:
        """Everything recorded inside is one transaction; on an error its files are removed again."""
        self._written.append([])
        try:
            with self.umig.transaction(), self.audit.recording():
                yield
                if self._written[-1] and len(self._written) == 1:  # before the rows
                    self.checkpoints.sync()
        except BaseException:
            for name in self._written[-1]:
                # The first error is the one to report; `recover` removes the file.
                with suppress(OSError, StoreError, sqlite3.Error):
                    # A Ctrl-C while SQLite commits is raised when it has: what is recorded then stays.
                    if len(self._written) > 1 or not self._is_kept(name):
                        self.checkpoints.delete(name)
            raise
        else:
            if len(self._written) > 1:
                self._written[-2] += self._written[-1]
        finally:
            self._written.pop()
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

    def _is_kept(self, name: str) -> bool:
        query = "SELECT 1 FROM checkpoint c JOIN node n ON n.id = c.node_id WHERE n.name = ?"
        return self._execute(query, name).fetchone() is not None

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
                self.set_meta("signature", json.dumps(plain))
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

    @property
    def undampenable(self) -> str | None:
        """Why no model of this store can be dampened, so that only lineage is recorded; None if they can."""
        return self.umig.get_meta("undampenable")

    def set_undampenable(self, why: str) -> None:
        """Note that the models are of no kind that can be dampened."""
        self.set_meta("undampenable", why)

    # ------------------------------------------------------------------ reading
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
        data = update.to_bytes()
        write_atomically(path, data)
        self.audit.append("kept", {"update": update.digest, "sha256": sha256(data).hexdigest()})
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

    # ------------------------------------------------------------------ who is who
    def identify(self, owner: str, client: str) -> None:
        """Remember that what is recorded under ``owner``, if anything is, is this client's."""
        recorded = self.umig.has_owner(owner)
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
        return {names[owner]: most for owner, most in self.umig.owner_examples().items()}

    def clients(self) -> dict[str, str]:
        """Owner as recorded in the UMIG to client name; an owner never identified maps to itself."""
        known = dict(self._execute("SELECT owner, client FROM alias").fetchall())
        return {owner: known.get(owner, owner) for owner in self.umig.owners()}
