"""The lineage file's format: its tables, its version, and how a file of version 1 becomes one of version 2.

Version 1 kept one row an edge and secondary indexes on the nodes, too slow to write and to walk at scale.
Version 2 keeps edges in blocks (`lineage_edges`) and the distinct owners in a table of their own.
"""

from __future__ import annotations

import sqlite3

import numpy as np

from fl_unlearn.lineage_edges import EDGE, EDGE_TABLE, append_edges

APPLICATION_ID = 0x554D4947  # "UMIG" in ASCII: how a file of ours is told from another program's
SCHEMA_VERSION = "2"
MIGRATED_FROM = "1"
# The largest number of examples of each owner: what a scan over its nodes would find.
_OWNER_TABLE = "CREATE TABLE owner (name TEXT PRIMARY KEY, examples INTEGER) WITHOUT ROWID"
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # No other index: with a thousand owners a round, each commit would touch a thousand of its pages.
    """CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    round INTEGER NOT NULL, owner TEXT, examples INTEGER, digest TEXT, metadata TEXT)""",
    EDGE_TABLE,
    _OWNER_TABLE,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}')",
)
_AT_ONCE = 20_000  # children whose edges are in memory while a file is migrated


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file; the caller holds a transaction."""
    for statement in _SCHEMA:
        connection.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Turn version 1 into version 2; the caller holds a transaction."""
    connection.execute(EDGE_TABLE)
    connection.execute(_OWNER_TABLE)
    connection.execute(
        "INSERT INTO owner SELECT owner, max(examples) FROM node WHERE owner IS NOT NULL GROUP BY owner"
    )
    (newest,) = connection.execute("SELECT ifnull(max(id), 0) FROM node").fetchone()
    for first in range(1, newest + 1, _AT_ONCE):
        rows = connection.execute(
            "SELECT child, parent, weight FROM edge WHERE child BETWEEN ? AND ? ORDER BY child, parent",
            (first, first + _AT_ONCE - 1),
        )
        append_edges(connection, np.fromiter(rows, EDGE))
    connection.execute("DROP TABLE edge")
    for index in ("node_kind", "node_round", "node_owner"):
        connection.execute(f"DROP INDEX {index}")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION,))
