"""Graphs for the tests of the lineage."""

from __future__ import annotations

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
KINDS = [NodeKind.INITIAL, NodeKind.CLIENT_UPDATE, NodeKind.AGGREGATE, "stage"]
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
        umig.add(
            name,
            kind=kind,
            round=rounds[name],
            parents=parents,
            owner=owner,
            examples=draw(st.none() | st.integers(0, 2**63 - 1)),
            digest=draw(st.none() | st.just("f" * 64)),
            metadata=draw(st.none() | st.dictionaries(texts, st.none() | st.integers() | texts, max_size=2)),
        )
        slow.add(name, kind, owner, parents)
        known.append(name)
    return umig, slow
