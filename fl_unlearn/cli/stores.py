"""Opening a store to look at it, and the questions that only SQL answers without listing every model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore

try:
    import fcntl
except ImportError:  # Windows: nobody can tell
    fcntl = None  # type: ignore[assignment]

# Hidden: typer 0.20, the newest that Flower allows, loses an argument's help under click 8.5. The usage line
# shows it all the same, and the text below the options explains it.
Store = Annotated[Path, typer.Argument(metavar="STORE", exists=True, file_okay=False, hidden=True)]
STORE_HELP = "STORE: the folder of a run, as given to UnlearningStrategy(store=...)."


@contextmanager
def reading(folder: Path) -> Iterator[RunStore]:
    """The store, opened to look at it.

    Raises:
        StoreError: If the folder holds no store of a run that this version can read.
    """
    from fl_unlearn.run_store import RunStore

    with RunStore(folder, read_only=True) as store:
        yield store


def is_being_written(folder: Path) -> bool | None:
    """Whether a process has the store open for writing; None where the system cannot tell."""
    if fcntl is None:
        return None
    try:
        with open(folder / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of at once, as the file closes
            except BlockingIOError:
                return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


class Kept(NamedTuple):
    """A checkpoint as the ledger has it."""

    name: str
    kind: str
    round: int
    digest: str
    size: int


@dataclass
class Round:
    """How many models of each kind a round has, and how many of them are kept as checkpoints."""

    number: int
    kinds: dict[str, int] = field(default_factory=dict)
    checkpoints: int = 0


def rows(store: RunStore, sql: str, *values: Any) -> Iterator[Any]:
    """The rows of a question to the store's database, one at a time."""
    return iter(store.umig.connection.execute(sql, values))


def kinds(store: RunStore) -> dict[str, int]:
    """Kind to number of models, most frequent first."""
    return dict(rows(store, "SELECT kind, count(*) FROM node GROUP BY kind ORDER BY count(*) DESC, kind"))


def rounds(store: RunStore) -> list[Round]:
    """Every round that has models, in order."""
    found: dict[int, Round] = {}
    counts = "SELECT round, kind, count(*) FROM node GROUP BY round, kind ORDER BY round, min(id)"
    for number, kind, models in rows(store, counts):
        found.setdefault(number, Round(number)).kinds[kind] = models
    kept = "SELECT n.round, count(*) FROM checkpoint c JOIN node n ON n.id = c.node_id GROUP BY n.round"
    for number, checkpoints in rows(store, kept):
        found[number].checkpoints = checkpoints
    return list(found.values())


def kept(store: RunStore) -> list[Kept]:
    """Every checkpoint of the ledger, in chronological order."""
    sql = (
        "SELECT n.name, n.kind, n.round, c.digest, c.size FROM checkpoint c JOIN node n ON n.id = c.node_id "
        "ORDER BY n.id"
    )
    return [Kept(*row) for row in rows(store, sql)]


def kept_bytes(store: RunStore) -> tuple[int, int]:
    """Number of checkpoints, and their bytes, as the ledger has them."""
    ((number, size),) = rows(store, "SELECT count(*), ifnull(sum(size), 0) FROM checkpoint")
    return number, size


def decided_digests(store: RunStore, name: str) -> list[str]:
    """Digests of a checkpoint's successors that are decided, but not noted as being in place."""
    sql = (
        "SELECT a.after FROM application a JOIN operation o ON o.id = a.operation_id "
        "JOIN node n ON n.id = a.node_id WHERE o.done = 0 AND n.name = ?"
    )
    return [after for (after,) in rows(store, sql, name)]


def _has_audit_log(store: RunStore) -> bool:
    return bool(list(rows(store, "SELECT 1 FROM sqlite_master WHERE name = 'audit'")))


def audit_entries(store: RunStore) -> int:
    """Number of entries in the audit log; 0 for a store from before there was one."""
    return next(rows(store, "SELECT count(*) FROM audit"))[0] if _has_audit_log(store) else 0


def interrupted_requests(store: RunStore) -> list[dict[str, Any]]:
    """Requests that are being served, or whose server died: number and last phase completed."""
    from fl_unlearn.request_log import UNFINISHED

    sql = f"SELECT id, phase FROM request WHERE phase IN ({', '.join('?' * len(UNFINISHED))}) ORDER BY id"
    return [{"request": id_, "phase": phase} for id_, phase in rows(store, sql, *UNFINISHED)]


def decision_times(store: RunStore) -> dict[str, str]:
    """Digest of an operation to the time at which the audit log has it decided, as written there."""
    sql = (
        "SELECT json_extract(body, '$.operation'), max(time) FROM audit WHERE kind = 'decided' "
        "AND json_valid(body) GROUP BY 1"
    )
    return dict(rows(store, sql)) if _has_audit_log(store) else {}
