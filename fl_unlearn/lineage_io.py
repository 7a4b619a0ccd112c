"""The model inheritance graph in other formats: networkx, node-link JSON, GraphML (both ways), Graphviz DOT.

In all of them a node is known by its name and carries ``order`` (its chronological position, `Node.id`),
``kind``, ``round``, ``owner``, ``examples``, ``digest`` and ``metadata``; an edge carries ``weight``. An
import needs ``kind``, ``round`` and ``weight``; other attributes are left out. What `UMIG.set_meta` keeps
belongs to the file, not to the graph, and is not exported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import ParseError

from fl_unlearn.lineage import UMIG, Node
from fl_unlearn.types import LineageError, StoreError

if TYPE_CHECKING:
    import networkx as nx

_OPTIONAL = ("owner", "examples", "digest", "metadata")
_TEXTS = ("kind", "owner", "digest")
# What XML cannot hold, what its readers change (line ends, C1 controls), and the backslash that marks it.
_NOT_XML = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\ufffe\uffff]")


def _attributes(node: Node) -> dict[str, Any]:
    return {
        "order": node.id,
        "kind": node.kind,
        "round": node.round,
        "owner": node.owner,
        "examples": node.examples,
        "digest": node.digest,
        "metadata": dict(node.metadata),
    }


def _contents(umig: UMIG) -> tuple[list[Node], Iterator[tuple[str, str, float]]]:
    """All nodes, and the edges among them (parent, child, weight), both in chronological order."""
    nodes = list(umig)
    edges = umig.edges(last=len(nodes))
    columns = (edges[column].tolist() for column in ("parent", "child", "weight"))
    named = ((nodes[p - 1].name, nodes[c - 1].name, w) for p, c, w in zip(*columns, strict=True))
    return nodes, named


# --------------------------------------------------------------------------- networkx
def to_networkx(umig: UMIG) -> nx.DiGraph:
    """The graph as a ``networkx.DiGraph``, from parents to children, nodes in chronological order."""
    import networkx as nx

    nodes, edges = _contents(umig)
    graph = nx.DiGraph()
    graph.add_nodes_from((node.name, _attributes(node)) for node in nodes)
    graph.add_weighted_edges_from(edges)
    return graph


def from_networkx(graph: nx.DiGraph, path: str | Path = ":memory:") -> UMIG:
    """A new graph from a ``networkx.DiGraph``.

    Nodes are appended in the order of their ``order``; where one has none, of their rounds. Parents come
    first in any case.

    Raises:
        LineageError: If the graph has a cycle, parallel or undirected edges, a missing attribute or a value
            that a UMIG refuses, or if ``path`` holds nodes already. No node is written then.
        StoreError: If the file cannot be written.
    """
    plan = [(name, _wanted(graph, name), dict(_incoming(graph, name))) for name in _chronological(graph)]
    umig = UMIG(path)
    try:
        with umig.transaction():
            if len(umig):
                raise LineageError(f"'{path}' holds {len(umig)} nodes already; import into a new file")
            for name, attributes, parents in plan:
                umig.add(name, parents=parents, **attributes)
    except BaseException:
        umig.close()
        raise
    return umig


def _chronological(graph: nx.DiGraph) -> list[str]:
    import networkx as nx

    if not graph.is_directed() or graph.is_multigraph():
        raise LineageError(f"a lineage is a networkx.DiGraph without parallel edges, got {graph}")
    for name in graph:
        for key in ("kind", "round"):
            if graph.nodes[name].get(key) is None:
                raise LineageError(
                    f"node {name!r} has no attribute '{key}'; give every node a kind and a round"
                )
    given = [graph.nodes[name].get("order") for name in graph]
    key = "order" if all(isinstance(order, int) for order in given) else "round"
    try:
        return list(nx.lexicographical_topological_sort(graph, key=lambda name: graph.nodes[name][key]))
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(repr(parent) for parent, _ in nx.find_cycle(graph))
        raise LineageError(
            f"a lineage has no cycles, got {cycle} -> ...; remove one of these edges"
        ) from None
    except TypeError as e:
        raise LineageError(f"the attribute '{key}' must be a whole number on every node ({e})") from e


def _wanted(graph: nx.DiGraph, name: str) -> dict[str, Any]:
    attributes = graph.nodes[name]
    return {key: attributes.get(key) for key in ("kind", "round", *_OPTIONAL)}


def _incoming(graph: nx.DiGraph, name: str) -> list[tuple[str, float]]:
    edges = list(graph.in_edges(name, data="weight"))
    for parent, _, weight in edges:
        if weight is None:
            raise LineageError(
                f"the edge from {parent!r} to {name!r} has no attribute 'weight'; 1 is a full share"
            )
    return [(parent, weight) for parent, _, weight in edges]


# --------------------------------------------------------------------------- node-link
def to_node_link(umig: UMIG) -> dict[str, Any]:
    """The graph as plain JSON values in networkx's node-link layout (``id`` is the name; ``edges``)."""
    nodes, edges = _contents(umig)
    return {
        "directed": True,
        "multigraph": False,
        "graph": {},
        "nodes": [{"id": node.name, **_attributes(node)} for node in nodes],
        "edges": [{"source": parent, "target": child, "weight": weight} for parent, child, weight in edges],
    }


def from_node_link(data: Mapping[str, Any], path: str | Path = ":memory:") -> UMIG:
    """A new graph from node-link values; the edges may be called ``links``, as older networkx does.

    Raises:
        LineageError: If the layout is another, a node or an edge comes twice, an edge names an unknown node,
            or `from_networkx` refuses the graph.
        StoreError: If the file cannot be written.
    """
    import networkx as nx

    graph = nx.DiGraph()
    try:
        if not data.get("directed", True):
            raise LineageError("a lineage is directed, got 'directed': false; export the directed graph")
        for node in data["nodes"]:
            if node["id"] in graph:
                raise LineageError(f"node {node['id']!r} comes twice; names are unique")
            graph.add_node(node["id"], **{str(key): value for key, value in node.items() if key != "id"})
        for edge in data["edges"] if "edges" in data else data["links"]:
            source, target = edge["source"], edge["target"]
            if source not in graph or target not in graph or graph.has_edge(source, target):
                raise LineageError(f"the edge {source!r} -> {target!r} comes twice or names an unknown node")
            graph.add_edge(source, target, weight=edge.get("weight"))
    except (KeyError, TypeError, AttributeError) as e:
        raise LineageError(
            "node-link values look like {'nodes': [{'id': ...}], 'edges': [{'source': ..., 'target': ...}]}; "
            f"got something else ({type(e).__name__}: {e})"
        ) from e
    return from_networkx(graph, path)


# --------------------------------------------------------------------------- GraphML
def write_graphml(umig: UMIG, path: str | Path) -> None:
    r"""Write the graph as GraphML (compressed where ``path`` ends in ``.gz``).

    GraphML has no null, so an attribute that is None is left out; metadata is JSON text; a character that XML
    cannot hold, and the backslash, is written as ``\uXXXX`` in names, kinds, owners and digests.

    Raises:
        StoreError: If the file cannot be written.
    """
    import networkx as nx

    graph = to_networkx(umig)
    for _, attributes in graph.nodes(data=True):
        attributes["metadata"] = json.dumps(attributes["metadata"])
        for key in [key for key, value in attributes.items() if value is None]:
            del attributes[key]
        attributes.update({key: _escaped(attributes[key]) for key in _TEXTS if key in attributes})
    try:
        nx.write_graphml(nx.relabel_nodes(graph, _escaped), str(path))
    except OSError as e:
        raise StoreError(f"'{path}' cannot be written: {e}; check the folder and its free space") from e


def read_graphml(file: str | Path, path: str | Path = ":memory:") -> UMIG:
    """A new graph from a GraphML file, ours or another program's.

    Raises:
        LineageError: If the file is no GraphML, or `from_networkx` refuses the graph.
        StoreError: If a file cannot be read or written.
    """
    import networkx as nx

    try:
        graph = nx.read_graphml(str(file))
        for _, attributes in graph.nodes(data=True):
            attributes.update({key: _unescaped(attributes[key]) for key in _TEXTS if key in attributes})
            if "metadata" in attributes:
                attributes["metadata"] = json.loads(attributes["metadata"])
    except OSError as e:
        raise StoreError(f"'{file}' cannot be read: {e}; check the path") from e
    except (ParseError, nx.NetworkXException, KeyError, ValueError, TypeError) as e:
        raise LineageError(f"'{file}' is no GraphML file of a lineage ({e}); export it again") from e
    named = nx.relabel_nodes(graph, _unescaped)
    if len(named) != len(graph):
        raise LineageError(f"'{file}' has names that differ only in how a character is escaped; rename them")
    return from_networkx(named, path)


def _escaped(text: str) -> str:
    return _NOT_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)


# --------------------------------------------------------------------------- Graphviz
def to_dot(umig: UMIG, affected: Collection[str] = ()) -> str:
    """The graph as Graphviz DOT text; the nodes named in ``affected`` are coloured.

    Edges show their weight where it is not 1, and are dotted where it is 0.

    Raises:
        LineageError: If ``affected`` names a node that is not there.
    """
    marked = set(affected)
    nodes, edges = [], []
    found, links = _contents(umig)
    for node in found:
        label = _quoted(f"{node.name}\n{node.kind}, round {node.round}").replace("&", "&amp;")
        colour = ', fillcolor="#f4a582"' if node.name in marked else ""
        nodes.append(f"  {_quoted(node.name)} [label={label}{colour}];")
        marked.discard(node.name)
    for parent, child, weight in links:
        style = ", style=dotted" if weight == 0 else ""
        shown = "" if weight == 1 else f' [label="{weight:.3g}"{style}]'
        edges.append(f"  {_quoted(parent)} -> {_quoted(child)}{shown};")
    if marked:
        raise LineageError(f"affected names {min(marked)!r}, which is not in the graph; take UMIG.affected's")
    head = ["digraph umig {", "  rankdir=LR;", '  node [shape=box, style=filled, fillcolor="#ffffff"];']
    return "\n".join([*head, *nodes, *edges, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n")
    return f'"{escaped}"'
