"""Pictures of a run that forgot: the lineage, the stored models' accuracies, the classes.

Every function draws into ``ax`` (or, without one, into a new figure on the Agg canvas; pyplot, its global
state and any display stay untouched) and returns the figure with the data as drawn. Colours are those of
Okabe and Ito (2008), which remain distinct for colour-blind readers; shape or text repeats what colour says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from fl_unlearn.types import LineageError

VERMILLION, BLUE, GREEN, GREY, BLACK = "#D55E00", "#0072B2", "#009E73", "#9A9A9A", "#222222"
MARKERS, OTHER_MARKER = {"initial": "D", "client-update": "o", "aggregate": "s"}, "^"
GLOBAL_KINDS = ("initial", "aggregate")
UPDATE_LEAD = 0.4  # rounds by which a client's update stands before its round's aggregate
LABELLED_NODES, LABELLED_OWNERS = 24, 30

LineageData = dict[str, list[dict[str, Any]]]
ModelsData = dict[str, Any]


def natural_key(name: object) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``"client 2"`` comes before ``"client 10"``."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def _clip(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * float(share)


def _axes(ax: Axes | None, width: float, height: float, title: str, **labels: str) -> tuple[Any, Axes]:
    """The given axes, or those of a new, titled figure of this size in inches; labelled either way."""
    figure = Figure(figsize=(width, height), layout="constrained") if ax is None else ax.figure
    if ax is None:
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        ax.set_title(title, fontsize=11, loc="left")
    ax.set(**labels)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _inches(ax: Axes) -> tuple[float, float]:
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return box.width, box.height


def _legend(figure: Any, ax: Axes, own: bool, handles: list[Any]) -> None:
    """A legend outside the data: under a figure of our own, over the axes of somebody else's."""
    columns = int(figure.get_figwidth() / 1.9 if own else _inches(ax)[0] / 1.5)
    style: dict[str, Any] = {"handles": handles, "ncols": max(1, columns), "fontsize": 9, "frameon": False}
    if own:
        figure.legend(loc="outside lower center", **style)
    else:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), **style)


def _nothing(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=11)
    ax.set(xticks=[], yticks=[])


# --------------------------------------------------------------------------- lineage
def _lanes(owners: Iterable[str]) -> dict[str, float]:
    """A height for every owner, first on top; 0 stays free for the models that no client owns."""
    ordered = sorted(owners, key=natural_key)
    above = (len(ordered) + 1) // 2
    return {o: float(above - i if i < above else above - i - 1) for i, o in enumerate(ordered)}


def _place(graph: nx.DiGraph, affected: Collection[Hashable]) -> list[dict[str, Any]]:
    """Where every node is drawn; nodes that would coincide share their slot's height."""
    lanes = _lanes({str(a["owner"]) for _, a in graph.nodes(data=True) if a.get("owner") is not None})
    slots: dict[tuple[float, float], list[dict[str, Any]]] = defaultdict(list)
    nodes = []
    for node, attributes in graph.nodes(data=True):
        if "round" not in attributes or "kind" not in attributes:
            raise LineageError(
                f"node {node!r} lacks 'round' or 'kind' (it has {sorted(attributes)}); set both"
            )
        kind, owner = str(attributes["kind"]), attributes.get("owner")
        x = float(attributes["round"]) - (UPDATE_LEAD if kind == "client-update" else 0.0)
        y = 0.0 if owner is None else lanes[str(owner)]
        hit = node in affected
        root = hit and not any(p in affected for p in graph.predecessors(node))
        entry = {"node": node, "kind": kind, "round": int(attributes["round"]), "owner": owner}
        entry |= {"x": x, "y": y, "affected": hit, "root": root}
        nodes.append(entry)
        slots[x, y].append(entry)
    for crowd in slots.values():
        for i, entry in enumerate(crowd if len(crowd) > 1 else ()):
            entry["y"] += 0.35 - 0.7 * i / (len(crowd) - 1)
    return nodes


def _draw_edges(ax: Axes, edges: list[dict[str, Any]], at: Mapping[Hashable, tuple[float, float]]) -> None:
    alpha = _clip(5 / max(1, len(edges)) ** 0.5, 0.15, 0.6)
    for hit, colour in ((False, GREY), (True, VERMILLION)):
        chosen = [e for e in edges if e["affected"] is hit]
        lines = [[at[e["source"]], at[e["target"]]] for e in chosen]
        widths = [0.4 + 0.9 * _clip(e["weight"], 0, 1) for e in chosen]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=widths, alpha=alpha, zorder=1))


def _draw_nodes(ax: Axes, nodes: list[dict[str, Any]], size: float) -> None:
    groups = defaultdict(list)
    for n in nodes:
        groups[MARKERS.get(n["kind"], OTHER_MARKER), n["affected"], n["root"]].append((n["x"], n["y"]))
    for (marker, hit, root), points in groups.items():
        xy = [x for x, _ in points], [y for _, y in points]
        look: dict[str, Any] = (
            {"ec": BLACK, "lw": 1.8, "zorder": 4} if root else {"ec": "white", "lw": 0.5, "zorder": 3}
        )
        area = (1.35 * size if root else size) ** 2
        ax.scatter(*xy, s=area, marker=marker, c=VERMILLION if hit else GREY, **look)


def _lineage_legend(nodes: list[dict[str, Any]]) -> list[Line2D]:
    present = {n["kind"] for n in nodes}
    names = {"initial": "initial model", "client-update": "client's update", "aggregate": "aggregate"}
    looks = [(text, MARKERS[k], "white", BLACK) for k, text in names.items() if k in present]
    looks += [("other model", OTHER_MARKER, "white", BLACK)] if present - set(names) else []
    looks.append(("not affected", "o", GREY, "none"))
    if any(n["affected"] for n in nodes):
        looks += [("affected", "o", VERMILLION, "none"), ("root: first to learn it", "o", VERMILLION, BLACK)]
    style: dict[str, Any] = {"linestyle": "none", "ms": 8, "mew": 1.6}
    return [Line2D([], [], marker=m, mfc=fill, mec=edge, label=t, **style) for t, m, fill, edge in looks]


def _label_lineage(ax: Axes, nodes: list[dict[str, Any]], size: float) -> None:
    """Name the lanes (thinned when crowded), the rounds, and the nodes where there are few."""
    lanes = {n["y"]: str(n["owner"]) for n in nodes if n["owner"] is not None}
    heights = sorted(lanes, reverse=True)[:: 1 + len(lanes) // (LABELLED_OWNERS + 1)]
    ax.set_yticks([0.0, *heights], ["global", *(lanes[y] for y in heights)])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.margins(x=0.04)
    ax.set_ylim(min(n["y"] for n in nodes) - 0.5, max(n["y"] for n in nodes) + 0.5)
    style: dict[str, Any] = {"fontsize": 8, "path_effects": [withStroke(linewidth=2, foreground="white")]}
    style |= {"ha": "center", "textcoords": "offset points", "zorder": 5}
    for n in nodes if len(nodes) <= LABELLED_NODES else ():
        name = str(n["node"])
        offset = (0, size * (0.9 if n["root"] else 0.5) + 3)
        ax.annotate(name if len(name) <= 16 else name[:15] + "…", (n["x"], n["y"]), xytext=offset, **style)


def lineage_figure(
    graph: nx.DiGraph, affected: Collection[Hashable], ax: Axes | None = None
) -> tuple[Figure, LineageData]:
    """Timeline of the model inheritance graph, with what a request affects.

    x is the round; clients' updates stand in one lane per owner, slightly before their round's aggregate;
    models without an owner stand on the centre line.

    Args:
        graph: Nodes with attributes ``kind``, ``round`` and optionally ``owner``; edges parent to child,
            optionally with ``weight`` (share in the child, 0 to 1; default 1).
        affected: The nodes that carry what is to be forgotten.
        ax: Where to draw; None makes a new figure.

    Returns:
        The figure, and ``{"nodes": [...], "edges": [...]}`` as drawn.

    Raises:
        LineageError: If ``affected`` names a node the graph lacks, or a node lacks ``kind`` or ``round``.
    """
    unknown = [n for n in affected if n not in graph]
    if unknown:
        raise LineageError(f"{len(unknown)} affected node(s) are not in the graph, such as {unknown[0]!r}")
    marked = set(affected)
    nodes = _place(graph, marked)
    edges = [
        {"source": a, "target": b, "weight": float(w), "affected": a in marked and b in marked}
        for a, b, w in graph.edges(data="weight", default=1.0)
    ]
    columns, lanes = (len({n[key] for n in nodes}) for key in ("round", "y"))
    size = _clip(4 + 0.6 * columns, 6.5, 12), _clip(2.0 + 0.34 * lanes, 3.4, 12)
    ylabel = "client" if any(n["owner"] is not None for n in nodes) else ""
    figure, axes = _axes(ax, *size, "Lineage of the models", xlabel="round", ylabel=ylabel)
    if not nodes:
        _nothing(axes, "no model was recorded")
    else:
        width, height = _inches(axes)
        points = _clip(72 * min(0.35 * width / columns, 0.6 * height / (lanes + 1)), 3.5, 10.0)
        _draw_edges(axes, edges, {n["node"]: (n["x"], n["y"]) for n in nodes})
        _draw_nodes(axes, nodes, points)
        _label_lineage(axes, nodes, points)
        _legend(figure, axes, ax is None, _lineage_legend(nodes))
    return figure, {"nodes": nodes, "edges": edges}


# --------------------------------------------------------------------------- models
_SERIES = (
    ("forget_accuracy_before", "forgotten classes, before", VERMILLION, "o"),
    ("forget_accuracy_after", "forgotten classes, after", VERMILLION, "o"),
    ("retain_accuracy_before", "retained classes, before", BLUE, "s"),
    ("retain_accuracy_after", "retained classes, after", BLUE, "s"),
)


def _draw_series(ax: Axes, data: dict[str, Any], key: str, label: str, colour: str, marker: str) -> Line2D:
    """Line with markers for the global models, small points for the rest; hollow and dashed if 'before'."""
    before = key.endswith("before")
    dense = len(data["node"]) > 60
    size = (4.5 if dense else 7.5) if before else (3.0 if dense else 4.5)
    style: dict[str, Any] = {"color": colour, "marker": marker, "mfc": "none" if before else colour}
    style |= {"zorder": 3 if before else 4}
    rest = [(x, y) for x, y in data["series"][key]["others"] if y is not None]
    dots = style | {"linestyle": "none", "ms": 0.6 * size, "mew": 0.6, "alpha": 0.55, "gid": f"{key}/others"}
    ax.plot([x for x, _ in rest], [y for _, y in rest], **dots)
    points = [(x, float("nan") if y is None else y) for x, y in data["series"][key]["global"]]
    style |= {"linestyle": "--" if before else "-", "linewidth": 1.0, "ms": size, "gid": f"{key}/global"}
    return ax.plot([x for x, _ in points], [y for _, y in points], label=label, **style)[0]


def models_figure(models: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> tuple[Figure, ModelsData]:
    """Accuracy of every stored model before (hollow, dashed) and after (filled) an update.

    Args:
        models: Rows as in ``report.json``, in the order of the x axis: ``node``, ``kind``, ``round``,
            ``affected`` and the four accuracies, 0 to 1 or None where nothing was measured.
        ax: Where to draw; None makes a new figure.

    Returns:
        The figure, and ``{"node", "round", "shaded_from", "series"}``: the order, the place of the first
        affected model or None, and per accuracy ``{"global": [(x, percent or None)], "others": [...]}``.
    """
    series: dict[str, dict[str, list[tuple[int, float | None]]]] = {}
    for key, *_ in _SERIES:
        series[key] = {"global": [], "others": []}
        for x, row in enumerate(models):
            series[key]["global" if row["kind"] in GLOBAL_KINDS else "others"].append((x, _percent(row[key])))
    shaded = next((x for x, row in enumerate(models) if row["affected"]), None)
    data = {k: [r[k] for r in models] for k in ("node", "round")} | {"shaded_from": shaded, "series": series}
    size, ylabel = (_clip(5 + 0.06 * len(models), 7, 12), 4.4), "held-out accuracy (%)"
    figure, axes = _axes(ax, *size, "Accuracy of the stored models", xlabel="round", ylabel=ylabel)
    drawn = [s for s in _SERIES if any(y is not None for part in series[s[0]].values() for _, y in part)]
    if not drawn:
        _nothing(axes, "no model was measured")
        return figure, data
    handles: list[Any] = [_draw_series(axes, data, *s) for s in drawn]
    if shaded is not None:
        span = axes.axvspan(shaded - 0.5, len(models) - 0.5, color=VERMILLION, alpha=0.12, lw=0, zorder=0)
        span.set_label("from the first affected model on")
        handles.append(span)
    last = {row["round"]: x for x, row in enumerate(models)}
    rounds = sorted(last)[:: 1 + int(len(last) / max(1.0, _inches(axes)[0] * 2.5))]
    axes.set_xticks([last[r] for r in rounds], [str(r) for r in rounds])
    axes.set(xlim=(-0.7, len(models) - 0.3), ylim=(-4, 104))
    axes.grid(axis="y", color=GREY, alpha=0.25)
    _legend(figure, axes, ax is None, handles)
    return figure, data


# --------------------------------------------------------------------------- classes
_BAR_LOOKS: dict[str, dict[str, Any]] = {
    "before": {"facecolor": "#CFCFCF", "edgecolor": GREY, "hatch": "////", "linewidth": 0.4},
    "after": {"facecolor": BLUE, "edgecolor": "white", "linewidth": 0.4},
    "retrained": {"facecolor": GREEN, "edgecolor": "white", "hatch": "....", "linewidth": 0.4},
}


def classes_figure(
    before: Mapping[int, float | None],
    after: Mapping[int, float | None],
    forgotten: Collection[int],
    retrained: Mapping[int, float | None] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, list[dict[str, Any]]]:
    """Accuracy per class of one model before and after, and of a retrained one where there is one.

    Args:
        before: Label to accuracy, 0 to 1 (None where nothing was measured).
        after: The same after the update; empty when nothing was changed.
        forgotten: The labels that were to be forgotten; marked in the axis labels.
        retrained: The same of a model trained without them.
        ax: Where to draw; None makes a new figure.

    Returns:
        The figure, and one ``{"label", "forgotten", "before", "after", "retrained"}`` per class, in percent.
    """
    named = {"before": before, "after": after, "retrained": retrained or {}}
    labels = sorted(set().union(*named.values()))
    data: list[dict[str, Any]] = [
        {"label": c, "forgotten": c in forgotten} | {k: _percent(v.get(c)) for k, v in named.items()}
        for c in labels
    ]
    shown = [k for k in named if any(row[k] is not None for row in data)]
    size, title = (_clip(2 + 0.75 * len(labels), 6.5, 12), 4.0), "Accuracy of the final model, class by class"
    figure, axes = _axes(ax, *size, title, xlabel="class", ylabel="held-out accuracy (%)")
    if not shown:
        _nothing(axes, "no class was measured")
        return figure, data
    width = 0.84 / len(shown)
    for i, key in enumerate(shown):
        shift = (i - (len(shown) - 1) / 2) * width
        bars = [(x + shift, row[key]) for x, row in enumerate(data) if row[key] is not None]
        axes.bar([x for x, _ in bars], [y for _, y in bars], 0.94 * width, gid=key, **_BAR_LOOKS[key])
    _class_ticks(axes, data, shown, width)
    axes.set(ylim=(0, 112), yticks=range(0, 101, 20))
    handles = [Patch(label=k, **_BAR_LOOKS[k]) for k in shown]
    _legend(figure, axes, ax is None, handles)
    return figure, data


def _class_ticks(ax: Axes, data: list[dict[str, Any]], shown: list[str], width: float) -> None:
    """Name the classes (never dropping a forgotten one) and, where there is room, write the small numbers."""
    room = _inches(ax)[0] / len(data)
    roomy = room >= 0.65
    step = max(1, round(0.3 / room))
    marked = [x for x, row in enumerate(data) if row["forgotten"]]
    kept = [x for x in range(0, len(data), step) if all(abs(x - m) >= step for m in marked)]
    ticks = sorted(set(kept) | set(marked))
    mark = "\nforgotten" if roomy else " *"
    names = [f"{data[x]['label']}{mark if data[x]['forgotten'] else ''}" for x in ticks]
    ax.set_xticks(ticks, names, rotation=90 if room < 0.3 else 0)
    for x, tick in zip(ticks, ax.get_xticklabels(), strict=True):
        tick.set_fontweight("bold" if data[x]["forgotten"] else "normal")
        tick.set_fontsize(9 if room >= 0.3 else 7)
    for x in marked:
        ax.axvspan(x - 0.48, x + 0.48, color=VERMILLION, alpha=0.10, lw=0, zorder=0)
    ax.set_xlim(-0.6, len(data) - 0.4)
    if marked and not roomy:
        ax.set_xlabel("class (* = forgotten)")
    for x, row in enumerate(data if room >= 0.5 else ()):
        for i, key in enumerate(shown):
            if row[key] is None or row["forgotten"]:
                at = x + (i - (len(shown) - 1) / 2) * width
                text = "n/a" if row[key] is None else f"{row[key]:.0f}"
                ax.text(at, (row[key] or 0.0) + 1.5, text, ha="center", va="bottom", fontsize=7, color=BLACK)
