"""What the commands print: tables for people, or nothing but JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of a table.")]
PAGE = 1000  # rows of a long table that are laid out together
SHORT = 19  # characters of a cell that is never folded
DIGEST = 12  # characters of a digest that people get to see


def console(*, stderr: bool = False) -> Console:
    """Where to print: coloured and as wide as the terminal, or plain and never wrapped into a file."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 100_000
    return made


def clean(value: object) -> str:
    """Text that shows as one line: control characters of names from elsewhere must not reach a terminal."""
    if value is None:
        return "-"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def say(message: object, style: str = "", *, stderr: bool = False) -> None:
    """Print one line."""
    console(stderr=stderr).print(Text(clean(message), style), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, header: bool = True, cut: str = ""
) -> None:
    """Print rows under a header; columns that hold numbers only (or sizes) stand to the right.

    In a narrow terminal the column ``cut`` is cut off, then columns of long texts are folded.
    """
    lines = [list(row) for row in rows]
    made = Table(box=None, pad_edge=False, show_header=header, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        cells = [clean(line[i]) for line in lines]
        numbers = all(isinstance(line[i], int | float | Size) or line[i] is None for line in lines)
        made.add_column(
            Text(clean(name)),
            justify="right" if numbers and lines else "left",
            overflow="fold",
            no_wrap=name != cut and all(len(cell) <= SHORT for cell in cells),
        )
    for line in lines:
        made.add_row(*(_cell(value, name == cut) for name, value in zip(columns, line, strict=True)))
    out = console()
    if out.is_terminal:
        out.print(made)
        return
    with out.capture() as laid_out:  # in a file, nobody needs the last column as wide as its longest text
        out.print(made)
    for text in laid_out.get().splitlines():
        typer.echo(text.rstrip())


def _cell(value: object, cut: bool) -> Text:
    text = Text(clean(value))
    if cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def stream(columns: Sequence[str], rows: Iterable[Sequence[object]], *, cut: str = "") -> int:
    """Print a table a page at a time, so that a long one is never all in memory; returns its length."""
    shown, remaining = 0, iter(rows)
    while page := list(islice(remaining, PAGE)):
        table(columns, page, header=not shown, cut=cut)
        shown += len(page)
    return shown


class Size(int):
    """A number of bytes, shown as people write it."""

    def __str__(self) -> str:
        return decimal(int(self))


def short(digest: str | None) -> str | None:
    """The first characters of a digest."""
    return None if digest is None else digest[:DIGEST]


def count(number: int, what: str, plural: str = "") -> str:
    """Such as ``1 model`` and ``1,200 models``."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def some(names: Sequence[str], most: int = 6) -> str:
    """The first of ``names``, and how many there are besides."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_json_line(value: Any) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value, allow_nan=False))


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A progress bar on stderr, seen in a terminal only and gone afterwards."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        yield bar


def tolerate_names() -> None:
    """Let names that the terminal's encoding lacks be escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
