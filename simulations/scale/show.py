"""The runs as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_HEAD = (
    "| engine | model | clients | request, s | of it Fisher, scores, telling, s | clients' computing, s "
    "| server's memory before, MB | most during, MB | grown by, MB | to clients, MB | from clients, MB "
    "| database, MB |"
)

Result = dict[str, Any]


def seconds_of(result: Result) -> dict[str, float]:
    """Seconds by question; the scoring before and after the commit together."""
    found: dict[str, float] = {}
    for phase in result["phases"]:
        found[phase["question"]] = found.get(phase["question"], 0.0) + phase["seconds"]
    return found


def grown(result: Result) -> int:
    """Bytes by which the server's process grew during the request."""
    return int(result["peak_bytes"] - result["resting_bytes"])


def table(results: Sequence[Result], *, head: bool = True) -> str:
    """The runs as Markdown, one a row."""
    rows = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)] if head else []
    for r in results:
        of = seconds_of(r)
        phases = ", ".join(f"{of.get(q, 0):.1f}" for q in ("fisher", "score", "apply"))
        sizes = [r["resting_bytes"], r["peak_bytes"], grown(r), r["bytes_down"], r["bytes_up"]]
        sizes.append(r["database_bytes"])
        cells = [
            r["engine"],
            f"{r['case']}, {r['model_bytes'] / 1e6:.2g} MB",
            str(r["clients"]),
            f"{r['seconds']:.1f}",
            phases,
            f"{r['client_seconds']:.1f}",
            *(f"{size / 1e6:.1f}" for size in sizes),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def picture(results: Sequence[Result]) -> Figure:
    """Time, and growth of the server's memory, against the number of clients."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for engine, case in dict.fromkeys((r["engine"], r["case"]) for r in results):
        own = sorted(
            (r for r in results if (r["engine"], r["case"]) == (engine, case)), key=lambda r: r["clients"]
        )
        at, style = [r["clients"] for r in own], "-" if engine == "pipes" else "--"
        label = f"{engine}, {case} ({own[0]['model_bytes'] / 1e6:.2g} MB)"
        time.plot(at, [r["seconds"] for r in own], style, marker="o", label=label)
        memory.plot(at, [grown(r) / 1e6 for r in own], style, marker="o", label=label)
        if engine == "pipes" and len(own) > 1:
            held = [(r["bytes_up"] - own[0]["bytes_up"]) / 1e6 + grown(own[0]) / 1e6 for r in own]
            memory.plot(at, held, ":", color=memory.lines[-1].get_color(), linewidth=1)
    _axes(time, "seconds of one request", log=True)
    _axes(memory, "growth of the server's memory, MB (dotted: if all answers were held)", log=True)
    time.legend(fontsize=7)
    return figure


def _axes(axes: Axes, title: str, *, log: bool) -> None:
    axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("clients")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
