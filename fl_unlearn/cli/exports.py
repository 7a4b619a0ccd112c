"""The graph as a file for other programs, or as a picture."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fl_unlearn.cli import stores
from fl_unlearn.cli.output import count

if TYPE_CHECKING:
    import networkx as nx

    from fl_unlearn.run_store import RunStore

EXPORTS = (".graphml", ".graphml.gz", ".json", ".dot")
PICTURES = (".png", ".svg", ".pdf")
MOST_DRAWN = 2000  # more models than that are a grey smear, and take minutes


def check_names(export_: Path | None, picture: Path | None) -> None:
    """Refuse a file of unknown format, or in no folder, before any work is done."""
    for path, known, option in ((export_, EXPORTS, "--export"), (picture, PICTURES, "--picture")):
        if path is None:
            continue
        if not path.name.endswith(known):
            raise typer.BadParameter(f"{option} {path}: the name must end in one of {', '.join(known)}")
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise typer.BadParameter(f"{option} {path}: there is no folder to put such a file into")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, moved to ``path`` when it is whole; its name ends like ``path``'s."""
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".fl-unlearn-") as scratch:
        made = Path(scratch) / path.name
        yield made
        os.replace(made, path)


def export(store: RunStore, path: Path, roots: list[str]) -> None:
    """Write the graph in the format that the name of the file asks for."""
    from fl_unlearn import lineage_io

    with replacing(path) as made:
        if path.suffix == ".json":
            with open(made, "w", encoding="utf-8") as file:
                json.dump(lineage_io.to_node_link(store.umig), file)
        elif path.suffix == ".dot":
            affected = {node.name for node in store.umig.affected(roots)}
            made.write_text(lineage_io.to_dot(store.umig, affected), encoding="utf-8")
        else:
            lineage_io.write_graphml(store.umig, made)


def draw(store: RunStore, path: Path, roots: list[str]) -> str:
    """Draw the graph, or the first rounds of a large one; returns what was drawn.

    The first rounds, since everything inherited before them is then in the picture too, so that the roots
    drawn are those of the whole graph.
    """
    from fl_unlearn.figures import lineage_figure

    graph, part = _first_rounds(store)
    affected = {node.name for node in store.umig.affected(roots) if node.name in graph}
    figure, _ = lineage_figure(graph, affected)
    with replacing(path) as made:
        figure.savefig(made, dpi=150)
    return part


def _first_rounds(store: RunStore) -> tuple[nx.DiGraph, str]:
    import networkx as nx

    from fl_unlearn.types import LineageError

    rounds = stores.rounds(store)
    drawn, total = [], 0
    for found in rounds:
        total += sum(found.kinds.values())
        if total > MOST_DRAWN:
            break
        drawn.append(found.number)
    if rounds and not drawn:
        raise LineageError(
            f"round {rounds[0].number} alone has more than {MOST_DRAWN:,} models, too many for a picture; "
            "--export the graph and draw it with a program made for that"
        )
    graph = nx.DiGraph()
    sql = "SELECT name, kind, round, owner FROM node WHERE round <= ? ORDER BY id"
    for name, kind, made, owner in stores.rows(store, sql, drawn[-1] if drawn else -1):
        graph.add_node(name, kind=kind, round=made, owner=owner)
        parents = store.umig.parents(name)
        graph.add_weighted_edges_from((parent, name, weight) for parent, weight in parents.items())
    part = count(len(graph), "model")
    if len(drawn) < len(rounds):
        part += (
            f": only rounds {drawn[0]} to {drawn[-1]} of {rounds[-1].number}, a picture holds {MOST_DRAWN:,}"
        )
    return graph, part
