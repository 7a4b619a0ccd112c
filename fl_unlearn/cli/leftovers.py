"""What lies in a store's folder and belongs to nothing: the remains of crashes, and updates out of use."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore

_UPDATE = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class Leftovers:
    """Files that the next writer removes or puts in place when it opens the store.

    Attributes:
        partial: Files that were never written to their end.
        staged: Successors of checkpoints that were never decided for.
        strays: Checkpoints that the ledger does not know.
        pending: Names of the models whose decided successor is to be put in place.
    """

    partial: list[Path]
    staged: list[Path]
    strays: list[Path]
    pending: list[str]

    @property
    def files(self) -> list[Path]:
        """All that will be removed."""
        return [*self.partial, *self.staged, *self.strays]


def find(store: RunStore) -> Leftovers:
    """What crashes left, as `RunStore.recover` will see it; files of a run that is writing are among it."""
    from fl_unlearn.store import PARTIAL, STAGED

    models = store.checkpoints
    pending = store.operations.pending()
    partial = [p for f in (models.folder, store.folder / "updates") for p in sorted(f.glob("*" + PARTIAL))]
    undecided = sorted(models.staged_names() - pending)
    staged = [path.with_name(path.name + STAGED) for path in map(models.path, undecided)]
    strays = [models.path(name) for name in sorted(models.names() - store.kept())]
    return Leftovers(partial, staged, strays, sorted(pending))


def unused_updates(store: RunStore, pruned: Collection[str] = ()) -> list[Path]:
    """Files of updates that no operation and no checkpoint, but for ``pruned`` ones, refers to.

    Raises:
        CorruptCheckpointError: If a checkpoint does not tell which updates it has had.
    """
    used = {digest for op in store.operations.all() for digest in (op.digest, op.client_update)}
    for name in store.kept().difference(pruned):
        used.update(store.checkpoints.applied(name))
    files = sorted((store.folder / "updates").glob("*.safetensors"))
    return [f for f in files if _UPDATE.fullmatch(f.name) and f.stem not in used]
