"""One update, every affected checkpoint: in parallel, all or nothing.

First every successor is prepared beside its checkpoint (nothing is changed yet: a full disk or a corrupt
file stops here and leaves all as it was); then one transaction decides; then the successors are put in
place, which a crash can only delay until the store is opened again (`run_store.RunStore.recover`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from typing import Any

from fl_unlearn.apply_file import Job, Prepared, Task, prepare
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.operations import StagedFile
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import CheckpointStore
from fl_unlearn.types import EXECUTORS, Executor, SettingsError, StoreError, UpdateError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (checkpoints done, checkpoints in all)."""


class StagedApplication:
    """Successors of all affected checkpoints, ready to be put in place together.

    Attributes:
        digest: Name of the operation: the update's digest, or one over all of them for per-model updates.
        client_update: Digest of the update that clients apply.
        files: What was staged.
        skipped: Models that had this update already.
        bytes_written: Bytes of the prepared successors.
    """

    def __init__(self, store: RunStore, digest: str, client_update: str) -> None:
        self.store, self.digest, self.client_update = store, digest, client_update
        self.files: list[StagedFile] = []
        self.skipped: list[str] = []
        self.bytes_written = 0

    def commit(self, request: Mapping[str, Any], outstanding: Iterable[str] = ()) -> None:
        """Decide, and put all successors in place.

        Once decided, trouble with putting a file in place is no way back: what is left to do is done at the
        next operation or the next start.

        Args:
            request: What was asked, for the ledger.
            outstanding: Clients that have not confirmed the update yet.

        Raises:
            StoreError: If the decision could not be recorded; every checkpoint stays as it was.
        """
        ledger = self.store.operations
        try:
            self.store.checkpoints.sync()  # what is decided for must be there after a power cut
            ledger.decide(self.digest, self.client_update, request, self.files, outstanding)
        except BaseException:
            self.rollback()
            raise
        try:
            ledger.finish()
        except (OSError, StoreError):
            log.exception("the update is decided; some checkpoints will get it when the store is opened next")

    def rollback(self) -> None:
        """Take all successors away, and every checkpoint stays as it was; those decided for are kept."""
        decided = self.store.operations.pending()
        for staged in self.files:
            if staged.name not in decided:
                self.store.checkpoints.discard(staged.name)

    def _take(self, prepared: Prepared) -> None:
        job = prepared.job
        if prepared.after is None:
            self.skipped.append(job.name)
            return
        self.bytes_written += prepared.written
        self.files.append(StagedFile(job.name, job.node_id, job.before, prepared.after))


def stage(
    store: RunStore,
    updates: Mapping[str, DampeningUpdate],
    client_update: DampeningUpdate,
    *,
    workers: int | None = None,
    executor: Executor = "threads",
    progress: Progress | None = None,
) -> StagedApplication:
    """Prepare the successor of every named checkpoint, in parallel.

    Args:
        store: The run's store.
        updates: Model name to the update it gets (the same one for all, unless references are per model).
            Models without a checkpoint are passed over.
        client_update: The update that clients apply to their copies; kept with the others.
        workers: How many checkpoints at a time; default two per core, since one may be waiting for
            the disk; with Ray, one per core of the cluster.
        executor: ``"threads"`` of this process, or ``"ray"``: tasks of a Ray cluster whose machines all see
            the checkpoints' address.
        progress: Told about each finished checkpoint; default: log lines.

    Raises:
        StoreFullError: If there is not room for the successors; nothing is changed.
        CorruptCheckpointError: If a checkpoint does not match its digest; nothing is changed.
        UpdateError: If an update does not fit its model; nothing is changed.
        SettingsError: If Ray is asked for and not installed, or the executor is unknown.
    """
    if not updates:
        raise UpdateError("there is no model to apply the update to")
    if executor not in EXECUTORS:
        raise SettingsError(f"executor must be one of {', '.join(EXECUTORS)}; got {executor!r}")
    store.operations.finish()  # what a failing disk interrupted: its staged files must not be overwritten
    tasks = [(Job(*kept), updates[kept[0]]) for kept in store.kept_files() if kept[0] in updates]
    distinct = {u.digest: u for u in (client_update, *updates.values())}
    digest = client_update.digest
    if len(distinct) > 1:
        text = client_update.digest + "".join(f";{n}:{updates[n].digest}" for n in sorted(updates))
        digest = sha256(text.encode()).hexdigest()
    staged = StagedApplication(store, digest, client_update.digest)
    tell = progress or _logged()
    try:
        for update in distinct.values():
            store.save_update(update)
        for done, prepared in enumerate(_run(store.checkpoints, tasks, workers, executor), start=1):
            staged._take(prepared)
            tell(done, len(tasks))
    except BaseException:
        for job, _ in tasks:  # not only those that were staged: a write may fail after its file is in place
            store.checkpoints.discard(job.name)
        raise
    staged.files.sort(key=lambda f: f.node_id)
    log.info("staged %d checkpoints, %d had the update already", len(staged.files), len(staged.skipped))
    return staged


def _run(
    checkpoints: CheckpointStore, tasks: Sequence[Task], workers: int | None, executor: Executor
) -> Iterator[Prepared]:
    """Prepare them all, in any order; after an error nothing is being written any more."""
    if executor == "ray":
        from fl_unlearn.apply_ray import run_on_ray

        yield from run_on_ray(checkpoints, tasks, workers)
        return
    with ThreadPoolExecutor(workers or 2 * usable_cores()) as pool:
        futures = [pool.submit(prepare, checkpoints, job, update) for job, update in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _logged(every: float = 2.0) -> Progress:
    """Progress as log lines, for what takes longer than a moment."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            log.info("prepared %d of %d checkpoints", done, total)

    return tell
