"""The results as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from simulations.attacks.liars import ATTACKS
from simulations.attacks.measure import DEFENCES

matplotlib.use("agg")

WHO = {3: "six holders", 8: "one holder, who lies", 9: "one holder, honest"}
Row = Mapping[str, Any]


def cell(row: Row) -> str:
    """One outcome in short: points of retained accuracy lost and forgotten accuracy, or a word."""
    if row["outcome"] != "committed":
        return "refused"
    lost = 100 * (row["retained_before"] - row["retained_after"])
    mark = "*" if row["disputed"] else ""
    return f"{lost:.1f} / {100 * row['forgotten_after']:.0f}%{mark}"


def table(rows: Sequence[Row], wear: Mapping[str, Sequence[Row]]) -> str:
    """All outcomes in Markdown."""
    lines = [
        "Points of retained test accuracy lost / accuracy left on the forgotten class, or what became of the",
        'request ("refused": nothing changed); "*": committed although some clients disputed it.',
        "",
    ]
    heads = [f"{WHO[c]}: {d}" for c in WHO for d in DEFENCES]
    lines += [f"| attack | liars | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for name, liars in dict.fromkeys((r["attack"], r["liars"]) for r in rows):
        own = {
            (r["class"], r["defence"]): cell(r) for r in rows if (r["attack"], r["liars"]) == (name, liars)
        }
        cells = [own[c, d] for c in WHO for d in DEFENCES]
        lines.append(f"| {name} | {liars} | {' | '.join(cells)} |")
    lines += ["", "One requester asks for eight classes in turn, harshly (t = 0.2 forced), nobody lies:", ""]
    for what, served in wear.items():
        done, last = sum(r["committed"] for r in served), served[-1]
        lines.append(
            f"- {what}: {done} of {len(served)} committed, {100 * last['spent']:.1f} points spent, "
            f"{100 * last['last_two_classes']:.1f} % left on the two classes never asked for"
        )
    lines += ["", "Attacks:", ""] + [f"- {a.name}: {a.about}" for a in ATTACKS]
    return "\n".join(lines) + "\n"


def picture(rows: Iterable[Row], path: Path) -> None:
    """Retained accuracy lost by attack and number of liars, without and with the defence."""
    rows = list(rows)
    names = [a.name for a in ATTACKS if a.name != "none"]
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(len(WHO), 1, sharex=True, sharey=True)
    for axis, (label, who) in zip(axes, WHO.items(), strict=True):
        for k, (defence, colour) in enumerate((("off", "#c44e52"), ("on", "#4c72b0"), ("strict", "#55a868"))):
            for liars in (1, 2, 3):
                _bars(axis, rows, names, (label, defence, liars), colour, 0.09 * (3 * k + liars - 5))
        axis.set_title(f"class {label}: {who}", loc="left", fontsize=10)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_ylabel("points lost")
    axes[-1].set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes[0].legend(ncols=3, fontsize=8)
    figure.suptitle(
        "Retained test accuracy lost; bars: 1, 2, 3 liars of 10; r: refused, k: kept", fontsize=11
    )
    figure.savefig(path, dpi=110)


def _bars(
    axis: Any, rows: Sequence[Row], names: Sequence[str], key: tuple[int, str, int], colour: str, shift: float
) -> None:
    own = {r["attack"]: r for r in rows if (r["class"], r["defence"], r["liars"]) == key}
    lost = [100 * (own[n]["retained_before"] - own[n]["retained_after"]) for n in names]
    label = f"defence {key[1]}" if key[2] == 1 else None
    axis.bar([i + shift for i in range(len(names))], lost, 0.085, color=colour, label=label)
    for i, name in enumerate(names):
        kept = own[name]["forgotten_after"] > 0.05
        mark = "r" if own[name]["outcome"] != "committed" else "k" if kept else ""
        axis.text(i + shift, max(lost[i], 0) + 0.5, mark, ha="center", fontsize=7, color=colour)
