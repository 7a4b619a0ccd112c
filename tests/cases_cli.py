"""Stores that the command line's tests look at, and a way to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import runs
from click.testing import Result
from typer.testing import CliRunner

from fl_unlearn.apply import stage
from fl_unlearn.cli import app
from fl_unlearn.run_store import RunStore

REQUEST = {"classes": [3], "clients": [], "reason": "", "threshold": 2.5, "dampening": 1.0}


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    shown = f"{result.stdout}\n{result.stderr}"
    assert result.exit_code == code, (result.exception, shown)
    assert result.exception is None or isinstance(result.exception, SystemExit), shown
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def run_lines(*arguments: object) -> list[Any]:
    return [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]


def forget(store: RunStore, owner: str = "1", waiting: tuple[str, ...] = ()) -> str:
    """Serve a request for class 3, held by ``owner``; returns the operation's digest."""
    roots = [node.name for node in store.umig.roots([owner])]
    update = runs.update()
    staged = stage(store, {node.name: update for node in store.umig.affected(roots)}, update)
    staged.commit({**REQUEST, "roots": roots, "holders": [owner]}, waiting)
    return staged.digest


def interrupted(store: RunStore) -> list[str]:
    """Decide on an operation without putting its files in place; returns the models it changes."""
    update = runs.update()
    staged = stage(store, {"g1": update, "g2": update}, update)
    store.operations.decide(staged.digest, staged.client_update, REQUEST, staged.files, ())
    return [file.name for file in staged.files]


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content, SQLite's passing ones apart."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in files.items() if not name.endswith(("-shm", "-wal"))}
