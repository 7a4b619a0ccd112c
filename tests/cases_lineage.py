"""Graphs for the tests of the lineage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hypothesis import strategies as st
from references_lineage import SlowGraph

from fl_unlearn.lineage import UMIG, NodeKind

ODD_NAMES = [
    "a b",
    'q"uo\\te',
    "Zürich/模型/👩‍🔬",
    "<&amp;>",
    "tab\tline\nend\r",
    "\x01\x7f\x85",
    "\\u0041",
    " ",
    "e\u0301",
]
KINDS = [NodeKind.INITIAL, NodeKind.CLIENT_UPDATE, NodeKind.AGGREGATE, NodeKind.TRAINED, "stage"]
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8)


def federation(path: str | Path = ":memory:", rounds: int = 3, clients: int = 3) -> UMIG:
    umig = UMIG(path)
    umig.add("g0", kind=NodeKind.INITIAL, round=0)
    for r in range(1, rounds + 1):
        add_round(umig, r, clients)
    return umig


def add_round(umig: UMIG, r: int, clients: int = 3) -> None:
    with umig.transaction():
        for c in range(clients):
            umig.add(
                f"u{r}.{c}",
                kind=NodeKind.CLIENT_UPDATE,
                round=r,
                parents={f"g{r - 1}": 1.0},
                owner=str(c),
                examples=10 + c,
                digest="0" * 64,
                metadata={"loss": 0.5},
            )
        shares = {f"u{r}.{c}": 1 / clients for c in range(clients)}
        umig.add(f"g{r}", kind=NodeKind.AGGREGATE, round=r, parents=shares)


def names(nodes) -> list[str]:
    return [node.name for node in nodes]


@st.composite
def graphs(draw) -> tuple[UMIG, SlowGraph]:
    umig, slow = UMIG(), SlowGraph()
    known: list[str] = []
    rounds: dict[str, int] = {}
    for name in draw(st.lists(texts, max_size=14, unique=True)):
        above = draw(st.lists(st.sampled_from(known), max_size=4, unique=True)) if known else []
        weights = st.sampled_from([0.0, 0.1, 1.0, 1 / 3, 5e-324, 1e308])
        parents = {p: draw(weights) for p in above}
        rounds[name] = max((rounds[p] for p in above), default=-2) + draw(st.integers(0, 2))
        kind, owner = draw(st.sampled_from(KINDS)), draw(st.sampled_from([None, "0", "1", "ü"]))
        examples = draw(st.none() | st.integers(0, 2**63 - 1))
        umig.add(
            name,
            kind=kind,
            round=rounds[name],
            parents=parents,
            owner=owner,
            examples=examples,
            digest=draw(st.none() | st.just("f" * 64)),
            metadata=draw(st.none() | st.dictionaries(texts, st.none() | st.integers() | texts, max_size=2)),
        )
        slow.add(name, kind, owner, parents, examples, rounds[name])
        known.append(name)
    return umig, slow


V1_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    round INTEGER NOT NULL, owner TEXT, examples INTEGER, digest TEXT, metadata TEXT);
CREATE TABLE edge (child INTEGER NOT NULL, parent INTEGER NOT NULL CHECK (parent < child),
    weight REAL NOT NULL, PRIMARY KEY (child, parent)) WITHOUT ROWID;
CREATE INDEX edge_parent ON edge (parent, weight);
CREATE INDEX node_kind ON node (kind);
CREATE INDEX node_round ON node (round);
CREATE INDEX node_owner ON node (owner) WHERE owner IS NOT NULL;
PRAGMA application_id = 1431128391;
INSERT INTO meta VALUES ('schema_version', '1');
PRAGMA journal_mode = WAL;
"""


def write_v1(umig: UMIG, path: Path) -> None:
    """A file of format 1, as fl-unlearn 0.1.0 wrote it, with what a graph holds."""
    connection = sqlite3.connect(path)
    connection.executescript(V1_SCHEMA)
    with connection:
        rows = umig.connection.execute("SELECT * FROM node").fetchall()
        connection.executemany("INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO edge VALUES (?, ?, ?)", umig.edges().tolist())
        connection.execute("INSERT INTO meta VALUES ('signature', 'kept')")
    connection.close()
