from __future__ import annotations

import json
import subprocess
import sys

import networkx as nx
import pytest
from cases_lineage import ODD_NAMES, federation, graphs, names
from hypothesis import given, settings

from fl_unlearn.lineage import UMIG
from fl_unlearn.lineage_io import (
    from_networkx,
    from_node_link,
    read_graphml,
    to_dot,
    to_networkx,
    to_node_link,
    write_graphml,
)
from fl_unlearn.types import LineageError, StoreError


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_exports_come_back_equal(tmp_path_factory, pair):
    umig, _ = pair
    file = tmp_path_factory.mktemp("io") / "umig.graphml"
    write_graphml(umig, file)
    text = json.dumps(to_node_link(umig))
    for copy in (read_graphml(file), from_networkx(to_networkx(umig)), from_node_link(json.loads(text))):
        assert list(copy) == list(umig)
        assert [copy.parents(n.name) for n in umig] == [umig.parents(n.name) for n in umig]


# --------------------------------------------------------------------------- export and import
def odd_graph() -> UMIG:
    umig = UMIG()
    last: dict[str, float] = {}
    for i, name in enumerate(ODD_NAMES):
        umig.add(name, kind=name, round=i, parents=last, owner=name, metadata={name: [None, 1]})
        last = {name: 1 / (i + 3)}
    return umig


def test_odd_names_survive_every_format(tmp_path):
    umig = odd_graph()
    write_graphml(umig, tmp_path / "u.graphml.gz")
    for copy in (
        read_graphml(tmp_path / "u.graphml.gz", tmp_path / "copy.sqlite"),
        from_networkx(to_networkx(umig), tmp_path / "copy2.sqlite"),
        from_node_link(to_node_link(umig)),
    ):
        assert list(copy) == list(umig)
        assert [copy.parents(n) for n in ODD_NAMES] == [umig.parents(n) for n in ODD_NAMES]
        copy.close()
    with UMIG(tmp_path / "copy.sqlite", read_only=True) as kept:
        assert names(kept) == ODD_NAMES


def test_networkx_graph_has_attributes_and_weights():
    graph = to_networkx(federation(rounds=1))
    assert isinstance(graph, nx.DiGraph)
    assert graph.nodes["u1.1"] == {
        "order": 3,
        "kind": "client-update",
        "round": 1,
        "owner": "1",
        "examples": 11,
        "digest": "0" * 64,
        "metadata": {"loss": 0.5},
    }
    assert dict(graph["u1.1"]) == {"g1": {"weight": 1 / 3}}
    assert nx.is_directed_acyclic_graph(graph)


def test_networkx_itself_reads_the_node_link_values():
    data = to_node_link(federation(rounds=2))
    graph = nx.node_link_graph(json.loads(json.dumps(data)), edges="edges")
    assert nx.utils.graphs_equal(graph, to_networkx(federation(rounds=2)))
    data["links"] = data.pop("edges")
    assert list(from_node_link(data)) == list(federation(rounds=2))


def test_a_graph_without_order_is_taken_by_rounds_and_parents():
    graph = nx.DiGraph()
    graph.add_node("late", kind="stage", round=2)
    graph.add_node("c", kind="stage", round=0, colour="red")
    graph.add_node("b", kind="stage", round=0)
    graph.add_edge("b", "c", weight=1)
    umig = from_networkx(graph)
    assert names(umig) == ["b", "c", "late"]
    assert umig.parents("c") == {"b": 1.0}


def test_order_decides_over_the_order_of_the_nodes():
    data = to_node_link(federation(rounds=2))
    data["nodes"].reverse()
    data["edges"].reverse()
    assert list(from_node_link(data)) == list(federation(rounds=2))


def _cycle(g):
    g.add_edge("g2", "u1.0", weight=1.0)


def _loop(g):
    g.add_edge("g2", "g2", weight=1.0)


def _mixed_rounds(g):
    g.add_node("one", kind="stage", round="x")
    g.add_node("two", kind="stage", round=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cycle, "no cycles, got .* -> "),
        (_loop, "no cycles, got 'g2' -> "),
        (lambda g: g.nodes["g1"].pop("kind"), "'g1' has no attribute 'kind'"),
        (lambda g: g.nodes["g1"].pop("round"), "'g1' has no attribute 'round'"),
        (lambda g: g["u1.0"]["g1"].pop("weight"), "from 'u1.0' to 'g1' has no attribute 'weight'"),
        (lambda g: g["u1.0"]["g1"].update(weight="x"), "finite number"),
        (lambda g: g.nodes["g1"].update(round=9), "older than its parent"),
        (_mixed_rounds, "must be a whole number on every node"),
        (lambda g: g.nodes["g1"].update(round="x"), "must be a whole number"),
        (lambda g: g.nodes["g1"].update(examples=-1), "0 or more"),
        (lambda g: g.add_node(5, kind="stage", round=0), "non-empty text, got 5"),
    ],
)
def test_a_spoiled_graph_is_refused_and_nothing_is_written(tmp_path, spoil, message):
    graph = to_networkx(federation(rounds=2))
    spoil(graph)
    with pytest.raises(LineageError, match=message):
        from_networkx(graph, tmp_path / "u")
    with UMIG(tmp_path / "u") as umig:
        assert len(umig) == 0


def test_other_kinds_of_graphs_and_full_files_are_refused(tmp_path):
    for graph in (nx.Graph(), nx.MultiDiGraph()):
        with pytest.raises(LineageError, match="without parallel edges"):
            from_networkx(graph)
    federation(tmp_path / "u").close()
    with pytest.raises(LineageError, match="13 nodes already"):
        from_networkx(nx.DiGraph(), tmp_path / "u")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d["nodes"].append(d["nodes"][0]), "'g0' comes twice"),
        (lambda d: d["edges"].append(d["edges"][0]), "comes twice"),
        (lambda d: d["edges"].append({"source": "no", "target": "g1", "weight": 1}), "unknown node"),
        (lambda d: d["edges"][0].pop("weight"), "no attribute 'weight'"),
        (lambda d: d.update(directed=False), "directed"),
        (lambda d: d.pop("nodes"), "node-link values look like"),
        (lambda d: d.update(nodes=["g0"]), "node-link values look like"),
        (lambda d: d["nodes"][0].pop("id"), "node-link values look like"),
    ],
)
def test_spoiled_node_link_values_are_refused(spoil, message):
    data = to_node_link(federation(rounds=1))
    spoil(data)
    with pytest.raises(LineageError, match=message):
        from_node_link(data)
    with pytest.raises(LineageError, match="node-link"):
        from_node_link([1])


def test_spoiled_graphml_is_refused(tmp_path):
    file = tmp_path / "u.graphml"
    with pytest.raises(StoreError, match="cannot be read"):
        read_graphml(file)
    with pytest.raises(StoreError, match="cannot be written"):
        write_graphml(UMIG(), tmp_path / "no" / "folder")
    for text in ("", "<graphml", "<other/>", "\x00"):
        file.write_text(text)
        with pytest.raises(LineageError, match="no GraphML file"):
            read_graphml(file)
    graph = nx.DiGraph()
    graph.add_node("g0", kind="initial", round=0, metadata="{not json")
    nx.write_graphml(graph, file)
    with pytest.raises(LineageError, match="no GraphML file"):
        read_graphml(file)
    nx.write_graphml(nx.DiGraph([("a\\", "b"), ("a\\u005c", "b")]), file)
    with pytest.raises(LineageError, match="differ only"):
        read_graphml(file)


def test_dot_quotes_and_colours():
    umig = UMIG()
    umig.add('a"\\', kind="initial", round=0)
    umig.add("b\n&", kind="stage", round=1, parents={'a"\\': 0.25})
    umig.add("c", kind="stage", round=1, parents={'a"\\': 1, "b\n&": 0})
    assert to_dot(umig, affected=["b\n&"]).splitlines() == [
        "digraph umig {",
        "  rankdir=LR;",
        '  node [shape=box, style=filled, fillcolor="#ffffff"];',
        r'  "a\"\\" [label="a\"\\\ninitial, round 0"];',
        r'  "b\n&" [label="b\n&amp;\nstage, round 1", fillcolor="#f4a582"];',
        r'  "c" [label="c\nstage, round 1"];',
        r'  "a\"\\" -> "b\n&" [label="0.25"];',
        r'  "a\"\\" -> "c";',
        r'  "b\n&" -> "c" [label="0", style=dotted];',
        "}",
    ]
    with pytest.raises(LineageError, match="'nobody', which is not in the graph"):
        to_dot(umig, affected={"nobody", "c"})


def test_importing_the_library_stays_light():
    heavy = "{'networkx', 'flwr', 'matplotlib'}"
    code = f"import sys, fl_unlearn, fl_unlearn.lineage_io; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
