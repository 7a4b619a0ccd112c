"""Taking over the ledger of checkpoints as format 1 had it: digests over whole files, no segments."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from hashlib import sha256

from fl_unlearn.files import read_exactly
from fl_unlearn.lineage import UMIG
from fl_unlearn.store import CheckpointStore
from fl_unlearn.tensor_file import FileInfo, info_of, parse
from fl_unlearn.types import StoreError

log = logging.getLogger(__name__)


def migrate_checkpoints(
    umig: UMIG, checkpoints: CheckpointStore, make_tables: Callable[[UMIG], None]
) -> None:
    """Give every checkpoint of a format-1 ledger its segments' digests; does nothing for a newer one.

    Operations that a crash left decided are put in place first. The digests in the record of earlier
    operations stay what they were, SHA-256 over whole files.

    Args:
        umig: The graph whose file holds the ledger, in a transaction.
        checkpoints: The files.
        make_tables: Makes the ledger's tables as they are now.

    Raises:
        StoreError: If a checkpoint is missing or does not match its old digest.
    """
    connection = umig.connection
    columns = [column[1] for column in connection.execute("PRAGMA table_info(checkpoint)")]
    if not columns or "segments" in columns:
        return
    _finish(connection, checkpoints)
    rows = connection.execute(
        "SELECT c.node_id, n.name, c.digest FROM checkpoint c JOIN node n ON n.id = c.node_id ORDER BY n.id"
    ).fetchall()
    log.info("bringing the ledger of %d checkpoints up to date", len(rows))
    infos = [(node_id, _read(checkpoints, name, digest)) for node_id, name, digest in rows]
    applied = connection.execute("SELECT operation_id, node_id, before, after, size FROM application")
    applications = applied.fetchall()
    connection.execute("DROP TABLE checkpoint")
    connection.execute("DROP TABLE application")
    make_tables(umig)
    connection.executemany(
        "INSERT INTO checkpoint VALUES (?, ?, ?, ?)", ((i, f.digest, f.size, f.segments) for i, f in infos)
    )
    connection.executemany("INSERT INTO application VALUES (?, ?, ?, ?, ?, x'')", applications)


def _finish(connection: sqlite3.Connection, checkpoints: CheckpointStore) -> None:
    """What format 1 did at the next start: put decided files in place, and note their digests."""
    decided = connection.execute(
        "SELECT n.name, a.after, a.node_id FROM application a JOIN operation o ON o.id = a.operation_id "
        "JOIN node n ON n.id = a.node_id JOIN checkpoint c ON c.node_id = a.node_id "
        "AND c.digest = a.before WHERE o.done = 0 ORDER BY o.id"
    ).fetchall()
    for name, after, node_id in decided:
        checkpoints.promote(name)
        connection.execute("UPDATE checkpoint SET digest = ? WHERE node_id = ?", (after, node_id))
    connection.execute("UPDATE operation SET done = 1")
    checkpoints.sync()


def _read(checkpoints: CheckpointStore, name: str, digest: str) -> FileInfo:
    with checkpoints.reader(name) as f:
        size = f.seek(0, 2)
        f.seek(0)
        data = read_exactly(f, size)
    if sha256(data).hexdigest() != digest:
        raise StoreError(
            f"{checkpoints.where(name)} is not what its ledger says, so its ledger stays as it was; "
            "restore the file from a backup, or use the version that wrote it"
        )
    return info_of(parse(data, size, name), data)
