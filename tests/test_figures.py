"""The pictures: what is returned is what is drawn, for wild, empty and single inputs."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from fl_unlearn.figures import classes_figure, lineage_figure, models_figure, natural_key
from fl_unlearn.types import LineageError

ACCURACIES = [f"{g}_accuracy_{w}" for g in ("forget", "retain") for w in ("before", "after")]


def federation(rounds: int, clients: int) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_node("init", kind="initial", round=0, owner=None)
    last = "init"
    for r in range(1, rounds + 1):
        graph.add_node(f"r{r}", kind="aggregate", round=r, owner=None)
        for c in range(clients):
            graph.add_node(f"r{r}/c{c}", kind="client-update", round=r, owner=str(c))
            graph.add_edge(last, f"r{r}/c{c}", weight=1.0)
            graph.add_edge(f"r{r}/c{c}", f"r{r}", weight=1 / clients)
        last = f"r{r}"
    return graph


def reached(graph: nx.DiGraph, *roots: str) -> set[str]:
    return set(roots).union(*(nx.descendants(graph, r) for r in roots))


def row(node: str, kind: str, round_: int, affected: bool, *values: float | None) -> dict:
    return {
        "node": node,
        "kind": kind,
        "round": round_,
        "affected": affected,
        **dict(zip(ACCURACIES, values, strict=True)),
    }


def drawn_nodes(figure: Figure) -> list[tuple[float, float]]:
    found = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return sorted((float(x), float(y)) for c in found for x, y in c.get_offsets())


def drawn_edges(figure: Figure) -> list[tuple[tuple[float, float], ...]]:
    found = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return sorted(tuple((float(x), float(y)) for x, y in s) for c in found for s in c.get_segments())


def line(figure: Figure, gid: str) -> list[tuple[float, float]]:
    (found,) = [ln for ln in figure.axes[0].lines if ln.get_gid() == gid]
    return [(float(x), float(y)) for x, y in found.get_xydata()]


def test_natural_order_of_names() -> None:
    assert sorted(["c10", "c2", "a", "c1"], key=natural_key) == ["a", "c1", "c2", "c10"]
    assert sorted(["x", "2", "10"], key=natural_key) == ["2", "10", "x"]


@pytest.mark.parametrize(("rounds", "clients"), [(0, 1), (1, 1), (1, 10), (3, 4), (15, 10), (75, 3)])
def test_lineage_draws_what_it_returns(rounds: int, clients: int) -> None:
    graph = federation(rounds, clients)
    affected = reached(graph, "r1/c0") if rounds else set()
    figure, data = lineage_figure(graph, affected)
    figure.canvas.draw()
    assert drawn_nodes(figure) == sorted((n["x"], n["y"]) for n in data["nodes"])
    at = {n["node"]: (n["x"], n["y"]) for n in data["nodes"]}
    assert drawn_edges(figure) == sorted((at[e["source"]], at[e["target"]]) for e in data["edges"])
    assert len(set(at.values())) == graph.number_of_nodes()
    assert {n["node"] for n in data["nodes"] if n["affected"]} == affected
    assert {(e["source"], e["target"]) for e in data["edges"]} == set(graph.edges)


def test_lineage_places_time_and_owners() -> None:
    _, data = lineage_figure(federation(2, 3), ())
    at = {n["node"]: n for n in data["nodes"]}
    assert at["r2"]["x"] == 2
    assert at["r2"]["y"] == 0
    assert at["init"]["x"] == 0
    assert 1 < at["r2/c0"]["x"] < 2
    lanes = [at[f"r1/c{c}"]["y"] for c in range(3)]
    assert lanes == [at[f"r2/c{c}"]["y"] for c in range(3)]
    assert lanes == sorted(lanes, reverse=True)
    assert 0 not in lanes


def test_lineage_roots_and_edges() -> None:
    graph = federation(2, 3)
    _, data = lineage_figure(graph, reached(graph, "r1/c0", "r1/c2"))
    assert {n["node"] for n in data["nodes"] if n["root"]} == {"r1/c0", "r1/c2"}
    hit = {(e["source"], e["target"]) for e in data["edges"] if e["affected"]}
    assert ("r1/c0", "r1") in hit
    assert ("r1/c1", "r1") not in hit
    assert ("init", "r1/c0") not in hit


def test_lineage_spreads_nodes_that_would_coincide() -> None:
    graph = nx.DiGraph()
    graph.add_node(0, kind="initial", round=0)
    for i in range(1, 5):
        graph.add_node(i, kind="fine-tuned", round=1)
        graph.add_edge(0, i)
    figure, data = lineage_figure(graph, set(graph))
    assert len({(n["x"], n["y"]) for n in data["nodes"]}) == 5
    assert [e["weight"] for e in data["edges"]] == [1.0] * 4
    assert any("other" in t.get_text() for t in figure.legends[0].get_texts())


def test_lineage_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(LineageError, match="'ghost'"):
        lineage_figure(federation(1, 1), {"ghost"})
    bare = nx.DiGraph()
    bare.add_node("a", kind="initial")
    with pytest.raises(LineageError, match="'a' lacks 'round'"):
        lineage_figure(bare, ())


def test_empty_inputs_say_so() -> None:
    for (figure, data), empty in (
        (lineage_figure(nx.DiGraph(), ()), {"nodes": [], "edges": []}),
        (models_figure([]), None),
        (classes_figure({}, {}, [1]), []),
    ):
        figure.canvas.draw()
        assert any(t.get_text().startswith("no ") for t in figure.axes[0].texts)
        assert empty is None or data == empty


def test_models_draws_what_it_returns() -> None:
    models = [
        row("init", "initial", 0, False, 0.1, 0.1, 0.2, 0.2),
        row("r1/c0", "client-update", 1, False, None, None, 0.4, 0.4),
        row("r1/c1", "client-update", 1, True, 0.6, 0.0, 0.5, 0.4),
        row("r1", "aggregate", 1, True, 0.7, 0.01, 0.6, 0.6),
        row("r2", "aggregate", 2, True, None, None, None, None),
    ]
    figure, data = models_figure(models)
    figure.canvas.draw()
    assert data["shaded_from"] == 2
    for key in ACCURACIES:
        expected = [(x, None if models[x][key] is None else 100 * models[x][key]) for x in (0, 3, 4)]
        assert data["series"][key]["global"] == expected
        shown = line(figure, f"{key}/global")
        assert [(x, None if math.isnan(y) else y) for x, y in shown] == expected
        others = [(x, 100 * models[x][key]) for x in (1, 2) if models[x][key] is not None]
        assert line(figure, f"{key}/others") == others
    span = [p for p in figure.axes[0].patches if "affected" in str(p.get_label())]
    assert [p.get_x() for p in span] == [1.5]


def test_models_before_is_hollow_and_after_filled() -> None:
    figure, _ = models_figure([row("a", "aggregate", 1, True, 0.9, 0.0, 0.9, 0.9)])
    faces = {ln.get_gid(): ln.get_markerfacecolor() for ln in figure.axes[0].lines}
    assert faces["forget_accuracy_before/global"] == "none"
    assert faces["forget_accuracy_after/global"] != "none"


def test_models_leaves_out_series_without_a_number() -> None:
    figure, data = models_figure([row("a", "aggregate", 1, False, 0.5, None, 0.9, None)])
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["forgotten classes, before", "retained classes, before"]
    assert data["shaded_from"] is None
    assert data["series"]["forget_accuracy_after"]["global"] == [(0, None)]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*[st.none() | st.floats(0, 1)] * 4, st.booleans()), min_size=1, max_size=12))
def test_models_takes_any_accuracies(rows: list[tuple]) -> None:
    models = [row(str(i), "aggregate", i, r[4], *r[:4]) for i, r in enumerate(rows)]
    _, data = models_figure(models)
    for key in ACCURACIES:
        back = [None if y is None else y / 100 for _, y in data["series"][key]["global"]]
        assert back == pytest.approx([m[key] for m in models])


@pytest.mark.parametrize("retrained", [None, {0: 0.8, 1: 0.0, 2: 0.7}])
def test_classes_draws_what_it_returns(retrained: dict | None) -> None:
    figure, data = classes_figure({0: 0.9, 1: 0.8, 2: None}, {0: 0.85, 1: 0.0, 3: 0.5}, {1}, retrained)
    figure.canvas.draw()
    assert [d["label"] for d in data] == [0, 1, 2, 3]
    assert [d["before"] for d in data] == [90.0, 80.0, None, None]
    assert [d["after"] for d in data] == [85.0, 0.0, None, 50.0]
    assert [d["forgotten"] for d in data] == [False, True, False, False]
    drawn = [[b.get_height() for b in box] for box in figure.axes[0].containers]
    keys = ["before", "after"] + (["retrained"] if retrained else [])
    assert drawn == [[d[k] for d in data if d[k] is not None] for k in keys]
    for box, key in zip(figure.axes[0].containers, keys, strict=True):
        centres = [round(b.get_x() + b.get_width() / 2) for b in box]
        assert centres == [i for i, d in enumerate(data) if d[key] is not None]


@pytest.mark.parametrize("count", [1, 2, 10, 20, 100])
def test_forgotten_classes_are_named_in_the_axis_labels(count: int) -> None:
    figure, _ = classes_figure(dict.fromkeys(range(count), 0.9), {}, {0, count - 1})
    figure.canvas.draw()
    marked = [
        t for t in figure.axes[0].get_xticklabels() if "*" in t.get_text() or "forgotten" in t.get_text()
    ]
    assert {int(t.get_text().split()[0]) for t in marked} == {0, count - 1}
    boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))


def test_refused_shows_before_only() -> None:
    figure, _ = classes_figure({0: 0.9, 1: 0.8}, {}, {1})
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["before"]


def test_given_axes_are_used() -> None:
    mine = Figure()
    axes = mine.subplots(1, 3)
    models = [row("a", "aggregate", 1, True, 0.9, 0.0, 0.9, 0.9)]
    assert lineage_figure(federation(1, 2), (), axes[0])[0] is mine
    assert models_figure(models, axes[1])[0] is mine
    assert classes_figure({0: 0.5}, {0: 0.4}, (), ax=axes[2])[0] is mine
    assert all(a.has_data() for a in axes)
    assert len(mine.axes) == 3


def test_pyplot_is_not_loaded() -> None:
    code = "import sys; from fl_unlearn.figures import models_figure as f; f([]); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
