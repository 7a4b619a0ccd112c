"""What an experiment made besides its models, in files: a run that was interrupted goes on from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.files import write_atomically
from fl_unlearn.types import UpdateError
from simulations.inheritance.methods import Applied
from simulations.inheritance.results import Row

MEASURED = "measured.json"


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or it was damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=1).encode())


def save_applied(folder: Path, name: str, key: Mapping[str, Any], applied: Applied) -> None:
    """Keep what a method made.

    Args:
        folder: Where; the update files lie there too, one for each that differs.
        name: The method.
        key: What decided it, plain values.
        applied: What it made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for digest, update in {u.digest: u for u in applied.updates.values()}.items():
        write_atomically(folder / f"{digest}.safetensors", update.to_bytes())
    plain = {f: getattr(applied, f) for f in ("seconds", "wall", "rounds", "facts", "refused")}
    digests = {model: update.digest for model, update in applied.updates.items()}
    write_json(folder / f"{name}.json", {"key": dict(key), **plain, "updates": digests})


def load_applied(folder: Path, name: str, key: Mapping[str, Any]) -> Applied | None:
    """What a method made with this key; None where that was not kept, or its files were damaged."""
    plain = read_json(folder / f"{name}.json")
    if plain is None or plain.pop("key") != dict(key):
        return None
    digests: dict[str, str] = plain.pop("updates")
    try:
        files = {d: (folder / f"{d}.safetensors").read_bytes() for d in set(digests.values())}
        updates = {digest: DampeningUpdate.from_bytes(data) for digest, data in files.items()}
    except (OSError, UpdateError):
        return None
    return Applied({model: updates[digest] for model, digest in digests.items()}, **plain)


class Measured:
    """Rows that were measured already.

    A row of a method holds for the update that it was measured with, and for no other.

    Args:
        folder: The experiment's; the rows are in `MEASURED` there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEASURED
        self._rows: dict[tuple[str, str], tuple[str, Row]] = {}
        for update, plain in read_json(self._path) or ():
            row = Row(**plain)
            self._rows[row.model, row.method] = (update, row)

    def get(self, model: str, method: str, update: str) -> Row | None:
        """A row; ``update``: digest of what the method did to the model, "" for nothing."""
        measured_with, row = self._rows.get((model, method), (None, None))
        return row if measured_with == update else None

    def add(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Keep rows, each with the digest of its update."""
        self._rows |= {(row.model, row.method): (update, row) for update, row in rows}
        write_json(self._path, [(update, asdict(row)) for update, row in self._rows.values()])
