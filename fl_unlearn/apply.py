"""One update, every affected checkpoint: in parallel, all or nothing.

First every successor is written beside its checkpoint (nothing is changed yet: a full disk or a corrupt
file stops here and leaves all as it was); then one transaction decides; then the files are renamed into
place, which a crash can only delay until the store is opened again (`run_store.RunStore.recover`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.operations import StagedFile
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import StoreError, StoreFullError, UpdateError

log = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Each worker holds a few copies of one checkpoint in memory."""

Progress = Callable[[int, int], None]
"""Called with (checkpoints done, checkpoints in all)."""


class StagedApplication:
    """Successors of all affected checkpoints, ready to be put in place together.

    Attributes:
        digest: Name of the operation: the update's digest, or one over all of them for per-model updates.
        client_update: Digest of the update that clients apply.
        files: What was staged.
        skipped: Models that had this update already.
    """

    def __init__(self, store: RunStore, digest: str, client_update: str) -> None:
        self.store, self.digest, self.client_update = store, digest, client_update
        self.files: list[StagedFile] = []
        self.skipped: list[str] = []

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
            if staged.node.name not in decided:
                self.store.checkpoints.discard(staged.node.name)


def stage(
    store: RunStore,
    updates: Mapping[str, DampeningUpdate],
    client_update: DampeningUpdate,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> StagedApplication:
    """Write the successor of every named checkpoint, in parallel.

    Args:
        store: The run's store.
        updates: Model name to the update it gets (the same one for all, unless references are per model).
            Models without a checkpoint are passed over.
        client_update: The update that clients apply to their copies; kept with the others.
        workers: Threads; default one per core, at most `MOST_WORKERS`.
        progress: Told about each finished checkpoint.

    Raises:
        StoreFullError: If there is not room for the successors; nothing is changed.
        CorruptCheckpointError: If a checkpoint does not match its digest; nothing is changed.
        UpdateError: If an update does not fit its model; nothing is changed.
    """
    if not updates:
        raise UpdateError("there is no model to apply the update to")
    store.operations.finish()  # what a failing disk interrupted: its staged files must not be overwritten
    kept = store.kept()
    names = [n for n in updates if n in kept]
    distinct = {u.digest: u for u in (client_update, *updates.values())}
    digest = client_update.digest
    if len(distinct) > 1:
        text = client_update.digest + "".join(f";{n}:{updates[n].digest}" for n in sorted(updates))
        digest = sha256(text.encode()).hexdigest()
    _check_room(store, names)
    staged = StagedApplication(store, digest, client_update.digest)

    def one(name: str) -> None:
        checkpoint = store.load(name)
        update = updates[name]
        if update.digest in checkpoint.applied:
            staged.skipped.append(name)
            return
        state = apply_update(checkpoint.state, update)
        after = store.checkpoints.stage(name, state, (*checkpoint.applied, update.digest))
        staged.files.append(StagedFile(store.umig.node(name), checkpoint.info, after))

    try:
        for update in distinct.values():
            store.save_update(update)
        with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, MOST_WORKERS)) as pool:
            for done, _ in enumerate(pool.map(one, names), start=1):
                if progress:
                    progress(done, len(names))
    except BaseException:
        for name in names:  # not only those that were staged: a write may fail after its file is in place
            store.checkpoints.discard(name)
        raise
    staged.files.sort(key=lambda f: f.node.id)
    log.info("staged %d checkpoints, %d had the update already", len(staged.files), len(staged.skipped))
    return staged


def _check_room(store: RunStore, names: Iterable[str]) -> None:
    need = sum(info.size for n in names if (info := store.info(n)))
    free = shutil.disk_usage(store.folder).free
    if need > free:
        raise StoreFullError(
            f"applying the update needs {need:,} bytes beside the checkpoints in {store.folder}, "
            f"{free:,} are free; nothing was changed. Free some space, then repeat the request"
        )
