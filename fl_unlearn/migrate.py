"""Taking over the ledger of checkpoints as format 1 had it: digests over whole files, no segments."""

from __future__ import annotations

import logging
from hashlib import sha256

from fl_unlearn.files import read_exactly
from fl_unlearn.lineage import UMIG
from fl_unlearn.store import CheckpointStore
from fl_unlearn.tensor_file import info_of, parse
from fl_unlearn.types import StoreError

log = logging.getLogger(__name__)


def migrate_checkpoints(umig: UMIG, checkpoints: CheckpointStore) -> None:
    """Give every checkpoint of a format-1 ledger its segments' digests; does nothing for a newer one.

    Operations that a crash left decided are put in place first. The digests in the record of operations
    before stay what they were, SHA-256 over whole files.

    Raises:
        StoreError: If a checkpoint is missing or does not match its old digest; nothing is changed.
    """
    connection = umig.connection
    if any(column[1] == "segments" for column in connection.execute("PRAGMA table_info(checkpoint)")):
        return
    with umig.transaction():
        connection.execute("ALTER TABLE checkpoint ADD COLUMN segments BLOB NOT NULL DEFAULT x''")
        connection.execute("ALTER TABLE application ADD COLUMN segments BLOB NOT NULL DEFAULT x''")
        decided = connection.execute(
            "SELECT n.name, a.after, a.node_id FROM application a JOIN operation o ON o.id = a.operation_id "
            "JOIN node n ON n.id = a.node_id JOIN checkpoint c ON c.node_id = a.node_id "
            "AND c.digest = a.before WHERE o.done = 0 ORDER BY o.id"
        ).fetchall()
        for name, after, node_id in decided:
            checkpoints.promote(name)
            connection.execute("UPDATE checkpoint SET digest = ? WHERE node_id = ?", (after, node_id))
        connection.execute("UPDATE operation SET done = 1")
        rows = connection.execute(
            "SELECT n.name, c.node_id, c.digest FROM checkpoint c JOIN node n ON n.id = c.node_id"
        ).fetchall()
        log.info("bringing the ledger of %d checkpoints up to date", len(rows))
        for name, node_id, digest in rows:
            with checkpoints.reader(name) as f:
                size = f.seek(0, 2)
                f.seek(0)
                data = read_exactly(f, size)
            if sha256(data).hexdigest() != digest:
                raise StoreError(
                    f"{checkpoints.where(name)} is not what its ledger says, so the ledger was not brought "
                    "up to date; restore the file from a backup, or use the version that wrote it"
                )
            info = info_of(parse(data, size, name), data)
            connection.execute(
                "UPDATE checkpoint SET digest = ?, size = ?, segments = ? WHERE node_id = ?",
                (info.digest, info.size, info.segments, node_id),
            )
        checkpoints.sync()
