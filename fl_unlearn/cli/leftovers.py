"""What lies in a store's folder and belongs to nothing: the remains of crashes, and updates out of use."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore

_UPDATE = re.compile(r"[0-9a-f]{64}\.safetensors")


class File(NamedTuple):
    """A file, wherever it is, and its bytes."""

    where: str
    size: int


@dataclass(frozen=True)
class Leftovers:
    """Files that the next writer removes or puts in place when it opens the store.

    Attributes:
        partial: Files that were never written to their end.
        staged: Successors of checkpoints that were never decided for.
        strays: Checkpoints that the ledger does not know.
        pending: Names of the models whose decided successor is to be put in place.
    """

    partial: list[File]
    staged: list[File]
    strays: list[File]
    pending: list[str]

    @property
    def files(self) -> list[File]:
        """All that will be removed."""
        return [*self.partial, *self.staged, *self.strays]


def find(store: RunStore) -> Leftovers:
    """What crashes left, as `RunStore.recover` will see it; files of a run that is writing are among it."""
    from fl_unlearn.files import PARTIAL
    from fl_unlearn.store import REDO, STAGED, SUFFIX, file_name

    models, pending = store.checkpoints, store.operations.pending()
    keep = {file_name(name) for name in store.kept()}
    keep |= {file_name(name) + end for name in pending for end in (STAGED, REDO)}

    def left(*ends: str) -> list[File]:
        names = [n for n in models.files.names() if n.endswith(ends) and n not in keep]
        return [File(f"{models.address}/{n}", models.files.size(n)) for n in names]

    partial = [local(p) for p in sorted((store.folder / "updates").glob("*" + PARTIAL))]
    staged = left(SUFFIX + STAGED, SUFFIX + REDO)
    strange = {models.where(name) for name in models.names() - store.kept() if not models.ours(name)}
    strays = [file for file in left(SUFFIX) if file.where not in strange]
    return Leftovers([*left(PARTIAL), *partial], staged, strays, sorted(pending))


def local(path: Path) -> File:
    """A file of the local disk."""
    return File(str(path), path.lstat().st_size)


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
