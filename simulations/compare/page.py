"""Comparisons as one self-contained HTML file: it opens from disk and needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fl_unlearn.files import write_atomically
from fl_unlearn.metrics.contract import Column
from simulations.compare.lineage_picture import lineage_chart
from simulations.compare.pictures import class_charts, cost_chart, scatter
from simulations.compare.results import RETRAIN, Comparison
from simulations.compare.sheet import REFERENCES, Sheet
from simulations.compare.summary import summarise

TEMPLATES = Path(__file__).parent / "templates"


def render(comparisons: Iterable[Comparison]) -> str:
    """The page as HTML; the same comparisons give the same text.

    Whatever the comparisons hold is escaped; the page's policy lets no script run but its own.
    """
    script = (TEMPLATES / "script.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template("page.html").render(
        views=[_view(i, c) for i, c in enumerate(comparisons, 1)],
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def write_page(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write `render` to a file, so that it is never there in part."""
    write_atomically(path, render(comparisons).encode())


def _view(number: int, c: Comparison) -> dict[str, Any]:
    """What the templates get of one comparison."""
    sheet = Sheet(c)
    classes = class_charts(sheet)
    shown = [i for i, chart in enumerate(classes) if chart.strategy != RETRAIN]
    return {
        "id": f"c{number}",
        "c": c,
        "sheet": sheet,
        "summary": summarise(sheet),
        "abouts": [_about(c, k) for b in sheet.blocks for k in b.columns],
        "fixed": [s for s in c.strategies if s in REFERENCES],
        "others": [s for s in c.strategies if s not in REFERENCES],
        "classes": classes,
        "first_chart": shown[0] if shown else 0,
        "forgets_classes": any(b.forgotten for chart in classes for b in chart.bars),
        "scatter": scatter(sheet),
        "cost": cost_chart(sheet),
        "lineage": lineage_chart(c.graph),
    }


def _about(c: Comparison, column: Column) -> dict[str, str]:
    """What a column means, and on how many samples its values rest."""
    samples = {r.samples for r in c.rows if r.key == column.key and r.samples}
    text = column.about
    if samples:
        low, high = min(samples), max(samples)
        text += (
            f" Measured on {low:,} samples." if low == high else f" Measured on {low:,} to {high:,} samples."
        )
    return {"title": column.title, "key": column.key, "text": text}
