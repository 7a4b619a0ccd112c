"""``fl-unlearn gc``: remove what belongs to nothing, and the oldest checkpoints where asked to."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_unlearn.cli import leftovers, stores
from fl_unlearn.cli.output import Json, Size, count, print_json, say, table
from fl_unlearn.cli.stores import Store

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore

Budget = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="BYTES",
        help="Drop the oldest checkpoints too until the rest fits; initial and newest global model stay.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Key that signs the audit log; a signed log needs it.", dir_okay=False),
]
HeadFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File to which the log's head is written.", dir_okay=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done; nothing is touched.")]


@dataclass
class _Work:
    """What is done, or would be.

    Attributes:
        removed: Files, and why they go.
        finished: Models whose decided successor is put in place.
        pruned: Models whose checkpoint is dropped for the byte budget, with their bytes.
        notes: What could not be done.
    """

    removed: list[tuple[str, str, int]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    pruned: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def remove(self, files: list[leftovers.File], why: str) -> None:
        self.removed += [(file.where, why, file.size) for file in files]

    @property
    def freed(self) -> int:
        return sum(size for *_, size in self.removed) + sum(size for _, size in self.pruned)


def gc(
    folder: Store,
    dry_run: DryRun = False,
    byte_budget: Budget = None,
    signing_key: KeyFile = None,
    audit_head: HeadFile = None,
    as_json: Json = False,
) -> None:
    """Finish what was interrupted, and remove leftovers and updates that nothing refers to."""
    from fl_unlearn.run_store import RunStore
    from fl_unlearn.store import KeepPolicy

    work, keep = _Work(), KeepPolicy(byte_budget=byte_budget)
    with RunStore(
        folder, keep=keep, read_only=True
    ) as store:  # a mistyped path must not be made into a store
        if dry_run and stores.is_being_written(folder):
            work.notes.append("a run is writing: files that it is just making may be in this list")
        _recovery(store, work)
        if dry_run:
            _tidy(store, work)
    if not dry_run:
        with RunStore(folder, keep=keep, signing_key=signing_key, audit_head=audit_head) as store:
            _tidy(store, work)
            _compact(store, work)
    if as_json:
        print_json(_plain(work, dry_run))
    else:
        _show(work, dry_run)


def _recovery(store: RunStore, work: _Work) -> None:
    """Note what opening the store to write will do."""
    left = leftovers.find(store)
    work.finished = left.pending
    work.remove(left.partial, "half written")
    work.remove(left.staged, "never decided")
    work.remove(left.strays, "not in the ledger")


def _tidy(store: RunStore, work: _Work) -> None:
    """Prune and drop updates, or only say which where the store is open to be looked at."""
    from fl_unlearn.types import CorruptCheckpointError

    dry_run, budget = store.umig.read_only, store.keep.byte_budget
    work.pruned = store.prunable()
    if not dry_run:
        store.prune()
    size = stores.kept_bytes(store)[1] - (sum(b for _, b in work.pruned) if dry_run else 0)
    if budget is not None and size > budget:
        work.notes.append(f"{Size(size)} are left: the initial and newest global models always stay")
    try:
        unused = leftovers.unused_updates(store, {name for name, _ in work.pruned})
    except CorruptCheckpointError as e:
        work.notes.append(f"updates are all kept, for it is not known which are in use: {e}")
        return
    work.remove([leftovers.local(path) for path in unused], "update out of use")
    if not dry_run:
        store.drop_updates([path.stem for path in unused])


def _compact(store: RunStore, work: _Work) -> None:
    """Give the database's free pages and its log back."""
    connection = store.umig.connection
    try:
        if connection.execute("PRAGMA freelist_count").fetchone()[0]:
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as e:  # it wants as much room as the file has, and what was freed stays freed
        work.notes.append(f"the database was not compacted: {e}")


def _plain(work: _Work, dry_run: bool) -> dict[str, Any]:
    removed = [{"file": where, "why": why, "bytes": size} for where, why, size in work.removed]
    pruned = [{"name": name, "bytes": size} for name, size in work.pruned]
    plain = {"dry_run": dry_run, "removed": removed, "pruned": pruned, "finished": work.finished}
    return plain | {"bytes_freed": work.freed, "notes": work.notes}


def _show(work: _Work, dry_run: bool) -> None:
    rows = [(where.rsplit("/", 1)[-1], why, Size(size)) for where, why, size in work.removed]
    rows += [(name, "over the byte budget", Size(size)) for name, size in work.pruned]
    if rows:
        table(("would remove" if dry_run else "removed", "because", "size"), rows)
    if work.finished:
        verb = "would put" if dry_run else "put"
        say(f"{verb} {count(len(work.finished), 'decided checkpoint')} in place")
    for note in work.notes:
        say(f"note: {note}", "yellow")
    verb = "would free" if dry_run else "freed"
    say(f"{verb} {Size(work.freed)}" if rows else "nothing to remove", "bold")
