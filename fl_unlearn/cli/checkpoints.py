"""``fl-unlearn checkpoints``: list them, and check every file against the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from fl_unlearn.cli import stores
from fl_unlearn.cli.output import (
    Json,
    JsonLines,
    Size,
    count,
    print_json,
    print_json_line,
    progress,
    say,
    short,
    table,
)
from fl_unlearn.cli.stores import STORE_HELP, Kept, Store

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore

app = typer.Typer(no_args_is_help=True, help="The models that a store keeps as files.")


@app.command("list", epilog=STORE_HELP)
def list_(folder: Store, as_json: JsonLines = False) -> None:
    """Every checkpoint: its model, its size, how many updates it has had, and its digest."""
    with stores.reading(folder) as store:
        found = [_entry(store, kept) for kept in stores.kept(store)]
    if as_json:
        for entry in found:
            print_json_line(entry)
        return
    columns = ("name", "kind", "round", "size", "updates", "digest")
    table(columns, [_row(entry) for entry in found])
    say(f"{count(len(found), 'checkpoint')}, {Size(sum(entry['bytes'] for entry in found))}")


def _entry(store: RunStore, kept: Kept) -> dict[str, Any]:
    from fl_unlearn.types import CorruptCheckpointError

    try:
        applied = list(store.checkpoints.applied(kept.name))
    except CorruptCheckpointError:
        applied = None
    entry = {"name": kept.name, "kind": kept.kind, "round": kept.round, "bytes": kept.size}
    return entry | {"applied": applied, "digest": kept.digest, "file": store.checkpoints.where(kept.name)}


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    updates = "unreadable" if entry["applied"] is None else len(entry["applied"])
    name, kind, made = entry["name"], entry["kind"], entry["round"]
    return name, kind, made, Size(entry["bytes"]), updates, short(entry["digest"])


@app.command(epilog=STORE_HELP)
def verify(folder: Store, as_json: Json = False) -> None:
    """Check every file against the ledger. Exit code 1 if one is missing, changed, foreign or a link."""
    with stores.reading(folder) as store:
        listed = stores.kept(store)
        problems, pending = [], []
        with progress("checking") as bar:
            for kept in bar.track(listed):
                trouble = _check(store, kept)
                if trouble == _PENDING:
                    pending.append(kept.name)
                elif trouble:
                    problems.append({"name": kept.name, "problem": trouble})
        problems += [{"name": name, "problem": _STRAY} for name in _strays(store)]
    if as_json:
        print_json({"checked": len(listed), "problems": problems, "pending": pending, "ok": not problems})
    else:
        _show(len(listed), problems, pending)
    if problems:
        raise typer.Exit(1)


_PENDING = "pending"
_STRAY = (
    "the ledger does not know this file: a crash left it, or somebody put it there. No request reaches it; "
    "fl-unlearn gc removes it"
)


def _check(store: RunStore, kept: Kept) -> str | None:
    """What is wrong with a checkpoint, or None; a run may change or drop it while we look."""
    from fl_unlearn.types import StoreError

    digest: str | None = kept.digest
    while True:
        try:
            store.checkpoints.read(kept.name, digest)
            return None
        except StoreError as e:
            info = store.info(kept.name)
            if info is None:
                return None
            if info.digest == digest:
                return _PENDING if _is_successor(store, kept.name) else str(e)
            digest = info.digest


def _is_successor(store: RunStore, name: str) -> bool:
    """Whether a decided operation has put the file there, or is about to, with the ledger to follow."""
    from fl_unlearn.types import StoreError

    try:
        return store.checkpoints.successor(name).digest in stores.decided_digests(store, name)
    except StoreError:
        return False


def _strays(store: RunStore) -> list[str]:
    """Files without a row; while a run writes, a file is there a moment before its row."""
    if stores.is_being_written(store.folder):
        return []
    return sorted(store.checkpoints.names() - store.kept())


def _show(checked: int, problems: list[dict[str, str]], pending: list[str]) -> None:
    for problem in problems:
        say(f"{problem['name']}: {problem['problem']}", "red")
    for name in pending:
        say(f"{name}: changed by an operation that was interrupted; opening the store to write finishes it")
    verdict = f"{count(len(problems), 'problem')} in " if problems else "no problem in "
    say(verdict + count(checked, "checkpoint"), "bold red" if problems else "bold green")
