"""What a run and its requests have come to, so that a server that died can go on: tables beside the UMIG.

Kept are the runs (how many of the planned rounds are done), one snapshot of what the server remembers beside
the model, and the requests (`request_log`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_unlearn.files import disk_errors, make_folder, remove_partial, write_atomically
from fl_unlearn.lineage import UMIG
from fl_unlearn.request_log import RequestLog
from fl_unlearn.types import CorruptCheckpointError, StoreError

log = logging.getLogger(__name__)

RUN_TABLES = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY, rounds INTEGER, done INTEGER NOT NULL, shift INTEGER NOT NULL,
    place INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot (
    one INTEGER PRIMARY KEY CHECK (one = 1), run_id INTEGER NOT NULL REFERENCES run(id), node TEXT NOT NULL,
    file TEXT, digest TEXT, operations TEXT NOT NULL)
"""


@dataclass(frozen=True)
class Run:
    """One call of ``start()``.

    Attributes:
        id: From 1 up, in order.
        rounds: How many were planned; None when the strategy's own loop was not told.
        done: The last of them that was recorded.
        shift: What is added to the run's round numbers to get the store's.
        place: How many runs the same store object had begun before.
        finished: Whether ``start()`` returned.
    """

    id: int
    rounds: int | None
    done: int
    shift: int
    place: int
    finished: bool


@dataclass(frozen=True)
class Snapshot:
    """Where the server stood when the last round was recorded.

    Attributes:
        run: The run's id.
        node: Name of the global model.
        file: What is kept beside that model's checkpoint; None when there is nothing to keep.
        digest: SHA-256 of the file.
        operations: Digests of the operations that the file's values have had.
    """

    run: int
    node: str
    file: Path | None
    digest: str | None
    operations: tuple[str, ...]

    def read(self) -> bytes | None:
        """The file's content; None when there is none, or when somebody has deleted it.

        Raises:
            CorruptCheckpointError: If it is not as it was written.
        """
        if self.file is None:
            return None
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            log.warning("%s was deleted: what the server remembered beside the model is lost", self.file)
            return None
        except OSError as e:
            raise StoreError(f"cannot read {self.file}: {e.strerror or e}") from e
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise CorruptCheckpointError(
                f"{self.file} was truncated or changed from outside. Restore it from a backup, or delete it "
                "to go on from the stored model with a fresh state of the strategy"
            )
        return data


class RunLog:
    """The log of a store's runs, in the UMIG's file.

    Args:
        umig: The graph whose file holds the log.
        folder: The store's folder; snapshots go to ``recovery/``, what requests need to ``requests/``.

    Attributes:
        requests: The log of requests.
        own: Ids of the runs that this object has begun or taken up.
    """

    def __init__(self, umig: UMIG, folder: Path) -> None:
        self.umig, self.recovery = umig, folder / "recovery"
        self.requests = RequestLog(umig, folder / "requests")
        self.own: list[int] = []
        if not umig.read_only:
            self.sweep()

    # ------------------------------------------------------------------ runs
    def last(self) -> Run | None:
        """The newest run."""
        row = self._execute(
            "SELECT id, rounds, done, shift, place, state = 'finished' FROM run ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        id_, planned, done, shift, place, finished = row
        return Run(id_, planned, done, shift, place, bool(finished))

    def begin(self, rounds: int | None, shift: int) -> Run:
        """Record a new run; one that was interrupted and not taken up is over with that."""
        with self.umig.transaction():
            self._execute("UPDATE run SET state = 'left' WHERE state = 'open'")
            row = (rounds, shift, len(self.own))
            self._execute(
                "INSERT INTO run (rounds, done, shift, place, state) VALUES (?, 0, ?, ?, 'open')", *row
            )
            run = self.last()
        assert run is not None
        self.own.append(run.id)
        return run

    def interrupted(self, rounds: int | None) -> Run | None:
        """The run that a ``start()`` with so many rounds goes on with; None: it begins a new one.

        That is the newest run, begun through another object (mostly: by a process that died), if it is not
        finished, or if a request that was made after it is not.
        """
        run = self.last()
        if run is None or run.id in self.own or (run.finished and not self.requests.unfinished(run.id)):
            return None
        if (run.rounds, run.place) != (rounds, len(self.own)):
            log.warning(
                "the last run was interrupted after %d of %s rounds; this one, of %s, is another: it begins "
                "anew, with the model that it was given",
                run.done,
                run.rounds,
                rounds,
            )
            return None
        return run

    def take_up(self, run: Run) -> None:
        """Note that this object goes on with a run."""
        self.own.append(run.id)

    def advance(self, run: int, done: int, shift: int) -> None:
        """Note how many rounds are done."""
        with self.umig.transaction():
            self._execute("UPDATE run SET done = ?, shift = ? WHERE id = ?", done, shift, run)

    def finish(self, run: int) -> None:
        """Note that ``start()`` is about to return."""
        with self.umig.transaction():
            self._execute("UPDATE run SET state = 'finished' WHERE id = ?", run)

    def reopen(self) -> None:
        """Let the next ``start()`` take up the last run although it is finished.

        For programs that have work to do after it, and were interrupted in that.
        """
        with self.umig.transaction():
            self._execute("UPDATE run SET state = 'open' WHERE id = (SELECT max(id) FROM run)")

    # ------------------------------------------------------------------ the snapshot
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot."""
        row = self._execute("SELECT run_id, node, file, digest, operations FROM snapshot").fetchone()
        if row is None:
            return None
        run, node, file, digest, operations = row
        path = self.recovery / file if file else None
        return Snapshot(run, node, path, digest, tuple(json.loads(operations)))

    def save_snapshot(self, run: int, node: str, data: bytes | None, operations: Sequence[str]) -> None:
        """Replace the snapshot; call `sweep` once the transaction around this is committed.

        Raises:
            StoreFullError: If the disk is full; the old snapshot stays.
        """
        file = digest = None
        if data is not None:
            digest = hashlib.sha256(data).hexdigest()
            file = f"{run}-{digest[:16]}.safetensors"
            with disk_errors(self.recovery):
                make_folder(self.recovery)
            write_atomically(self.recovery / file, data)
        with self.umig.transaction():
            row = (run, node, file, digest, json.dumps(list(operations)))
            self._execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?, ?, ?)", *row)

    def sweep(self) -> None:
        """Remove files that the log does not know (any more): older snapshots, requests that are over."""
        snapshot = self.snapshot()
        remove_partial(self.recovery)
        for path in self.recovery.glob("*.safetensors"):
            if snapshot is None or path != snapshot.file:
                path.unlink(missing_ok=True)
        self.requests.sweep()

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)
