"""Tables of records: CSV with everything, Markdown with what is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from simulations.figures.inherited.records import Record

PERCENT = ("forget", "retained")
"""Columns whose name starts so are accuracies, shown in percent."""


def to_csv(records: Sequence[Record]) -> str:
    """Every record and every column, as measured."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(records: Sequence[Record]) -> str:
    """The same columns for all; accuracies in percent, "-" where there is no value."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(c, r.get(c)) for c in columns) + " |" for r in records]
    return "\n".join(lines)


def _cell(column: str, value: str | int | float | bool | None) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.2f}" if column.startswith(PERCENT) else f"{value:.4g}"
    return str(value).replace("|", "\\|")
