"""Comparisons as Markdown: the blocks of columns one below the other, aligned for a terminal too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fl_unlearn.files import write_atomically
from simulations.compare.results import RETRAIN, Comparison
from simulations.compare.sheet import DASH, Block, Sheet
from simulations.compare.summary import summarise

LEGEND = (
    "Mean ± deviation over seeds. **Bold**: nearest to the retrained model, or the lowest cost, by the means "
    "as shown; original, retrain and refused strategies are not in that race. "
    f"{DASH}: no value, see the note."
)


def markdown(comparisons: Iterable[Comparison]) -> str:
    """All comparisons, each with its blocks, its notes and what it says in words."""
    return "\n\n".join(_section(Sheet(c)) for c in comparisons) + "\n"


def write_table(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write `markdown` to a file."""
    write_atomically(path, markdown(comparisons).encode())


def _section(sheet: Sheet) -> str:
    said = summarise(sheet)
    parts = [f"## {_text(sheet.comparison.name)}", _text(said.asked), LEGEND]
    for block in sheet.blocks:
        parts += [f"### {block.title}", _block(sheet, block)]
    if sheet.notes:
        parts.append("\n".join(f"- ({n}) {_text(note)}" for note, n in sheet.notes.items()))
    if said.refused:
        parts.append("Did not run, or changed nothing:")
        parts.append("\n".join(f"- {_text(s)}: {_text(why)}" for s, why in said.refused))
    parts.append("\n".join(f"- {_text(line)}" for line in (*said.measured, *said.beyond)))
    return "\n\n".join(parts)


def _block(sheet: Sheet, block: Block) -> str:
    units = [sheet.units[k.key] for k in block.columns]
    titles = [f"{_text(k.title)}{f' ({u})' if u else ''}" for k, u in zip(block.columns, units, strict=True)]
    rows = [["strategy", *titles]]
    for s in sheet.comparison.strategies:
        name = f"*{_text(s)}* (reference)" if s == RETRAIN else _text(s)
        rows.append([name, *(_shown(sheet, s, k.key) for k in block.columns)])
    widths = [max(3, *(len(r[i]) for r in rows)) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    first, *rest = [[_pad(t, w, i) for i, (t, w) in enumerate(zip(r, widths, strict=True))] for r in rows]
    return "\n".join(f"| {' | '.join(r)} |" for r in (first, rule, *rest))


def _shown(sheet: Sheet, strategy: str, key: str) -> str:
    cell = sheet.cell(strategy, key)
    value = cell.full or DASH
    value = f"**{value}**" if cell.best else value
    return f"{value} ({sheet.notes[cell.note]})" if cell.note else value


def _pad(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column else text.ljust(width)


def _text(value: object) -> str:
    """Text from outside on one line, with nothing left that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", " ".join(str(value).split()))
