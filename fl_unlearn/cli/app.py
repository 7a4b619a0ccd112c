"""The program: its commands, its options, and how errors end it."""

from __future__ import annotations

import sqlite3
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fl_unlearn import __version__
from fl_unlearn.cli import audit, checkpoints, gc, lineage, request, serve, status
from fl_unlearn.cli.output import say, tolerate_names
from fl_unlearn.cli.stores import STORE_HELP

HELP = """Look at what a federation's run left behind: its models, what they forgot, and the proof of it.

STORE is the folder given to UnlearningStrategy(store=...). Only gc changes \
its models. Everything but gc may be used while a run writes to it.

Exit codes: 0 all is well, 1 a check found a problem, 2 the command or its input was wrong.
"""


class _Group(TyperGroup):
    """Ends with a message and exit code 2 where the input is to blame; other errors are ours and show."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as e:
            if not _is_expected(e):
                raise
            say(f"error: {e}", "bold red", stderr=True)
            raise typer.Exit(2) from e


def _is_expected(error: Exception) -> bool:
    from fl_unlearn.types import UnlearnError  # here, since it loads torch

    return isinstance(error, UnlearnError | OSError | sqlite3.Error)


app = typer.Typer(
    name="fl-unlearn",
    cls=_Group,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("status", epilog=STORE_HELP)(status.status)
app.command("lineage", epilog=STORE_HELP)(lineage.lineage)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(audit.app, name="audit")
app.add_typer(request.app, name="request")
app.command("serve", epilog=STORE_HELP)(serve.serve)
app.command("gc", epilog=STORE_HELP)(gc.gc)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fl-unlearn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program; what the installed ``fl-unlearn`` calls."""
    tolerate_names()
    app()
