"""All files of a comparison: for programs, for a spreadsheet, and for reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulations.compare.page import write_page
from simulations.compare.results import Comparison, write_csv, write_json
from simulations.compare.table import markdown

FILES = ("results.json", "results.csv", "tables.md", "report.html")


def write_all(comparisons: Sequence[Comparison], folder: Path) -> str:
    """Write `FILES` into a folder; returns the tables."""
    write_json(comparisons, folder / "results.json")
    write_csv(comparisons, folder / "results.csv")
    text = markdown(comparisons)
    (folder / "tables.md").write_text(text)
    write_page(comparisons, folder / "report.html")
    return text
