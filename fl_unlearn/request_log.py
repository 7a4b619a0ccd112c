"""Forget requests and how far they have come: a server that died goes on after the last completed phase."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_unlearn.files import disk_errors, make_folder, write_atomically
from fl_unlearn.lineage import UMIG
from fl_unlearn.types import ForgetRequest, UnlearnSettings

OPENED, FISHER, CALIBRATED = "opened", "fisher", "calibrated"
COMMITTED, TOLD, DONE, REFUSED, FAILED = "committed", "told", "done", "refused", "failed"
UNDECIDED = (OPENED, FISHER, CALIBRATED)
"""Phases in which nothing has been changed yet."""
UNFINISHED = (*UNDECIDED, COMMITTED, TOLD)
"""Phases in which a request stands only while it is being served, or after its server died."""
SERVED = (DONE, REFUSED)
PHASES = (*UNFINISHED, *SERVED, FAILED)

REQUEST_TABLES = f"""
CREATE TABLE IF NOT EXISTS request (
    id INTEGER PRIMARY KEY, run_id INTEGER REFERENCES run(id), content TEXT NOT NULL, settings TEXT NOT NULL,
    after_round INTEGER, position INTEGER, phase TEXT NOT NULL DEFAULT '{OPENED}',
    facts TEXT NOT NULL DEFAULT '{{}}');
CREATE TABLE IF NOT EXISTS receipt (request_id INTEGER NOT NULL REFERENCES request(id), receipt TEXT NOT NULL)
"""


@dataclass(frozen=True)
class RequestRow:
    """One request.

    Attributes:
        id: From 1 up, in order.
        run: Id of the run it was made in; None when the store has none.
        request: What is to be forgotten.
        settings: How, as `UnlearnSettings.to_json` gives it.
        position: Its place among the requests submitted before the run; below 0, that of a document
            (`document_log.position`); None when it was made directly.
        phase: The last one completed.
        facts: What the phases produced, as JSON holds it.
    """

    id: int
    run: int | None
    request: ForgetRequest
    settings: dict[str, Any]
    position: int | None
    phase: str
    facts: dict[str, Any]


class RequestLog:
    """The requests made of a store, in the UMIG's file.

    Args:
        umig: The graph whose file holds the log.
        folder: Where to keep what requests need until they are over.
    """

    def __init__(self, umig: UMIG, folder: Path) -> None:
        self.umig, self.folder = umig, folder

    def open(
        self,
        request: ForgetRequest,
        settings: UnlearnSettings,
        *,
        position: int | None = None,
        after_round: int | None = None,
    ) -> RequestRow:
        """Record a new request in the newest run."""
        row = (self._run(), _json(request.to_json()), _json(settings.to_json()))
        with self.umig.transaction():
            cursor = self._execute(
                "INSERT INTO request (run_id, content, settings, after_round, position) "
                "VALUES (?, ?, ?, ?, ?)",
                *(*row, after_round, position),
            )
        return self.row(cursor.lastrowid)

    def row(self, id_: int) -> RequestRow:
        """The request with that id."""
        return self._rows("id = ?", id_)[0]

    def all(self) -> list[RequestRow]:
        """Every request, in the order they were made."""
        return self._rows("1")

    def find(self, request: ForgetRequest, position: int | None) -> RequestRow | None:
        """The same request in the newest run: the last one at that position, or made directly."""
        where = "run_id IS ? AND position IS ? AND content = ?"
        rows = self._rows(where, self._run(), position, _json(request.to_json()))
        return rows[-1] if rows else None

    def unfinished(self, run: int | None) -> list[RequestRow]:
        """Requests of a run whose serving was interrupted."""
        return self._rows(f"run_id IS ? AND {_among(UNFINISHED)}", run)

    def interrupted(self) -> list[RequestRow]:
        """As `unfinished`, of any run and of none."""
        return self._rows(_among(UNFINISHED))

    def served(self, run: int) -> list[RequestRow]:
        """Requests of a run that were served or refused, in the order they were made."""
        return self._rows(f"run_id = ? AND {_among(SERVED)}", run)

    def note(self, id_: int, phase: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a request has completed a phase, and everything known of it by then.

        What only a request in progress needs is removed when it is over.
        """
        with self.umig.transaction():
            self._execute("UPDATE request SET phase = ? WHERE id = ?", phase, id_)
            if facts is not None:
                self._execute("UPDATE request SET facts = ? WHERE id = ?", json.dumps(dict(facts)), id_)
        if phase not in UNFINISHED:
            shutil.rmtree(self.folder / str(id_), ignore_errors=True)

    def add_fact(self, id_: int, name: str, value: Any) -> None:
        """Note one thing beside what a request's phases note; it stays when the request is given up."""
        with self.umig.transaction():
            facts = json.dumps({**self.row(id_).facts, name: value})
            self._execute("UPDATE request SET facts = ? WHERE id = ?", facts, id_)

    def give_up(self, id_: int) -> None:
        """Leave a request that was interrupted as it stands; ``start()`` no longer waits for it."""
        self.note(id_, FAILED)

    def keep_file(self, id_: int, name: str, data: bytes) -> None:
        """Keep what a request needs to go on: until it is over, since it derives from the forgotten data."""
        folder = self.folder / str(id_)
        with disk_errors(folder):
            make_folder(folder)
        write_atomically(folder / name, data)

    def read_file(self, id_: int, name: str) -> bytes | None:
        """What `keep_file` kept; None when it is not there."""
        with suppress(OSError):
            return (self.folder / str(id_) / name).read_bytes()
        return None

    def add_receipts(self, id_: int, receipts: Sequence[str]) -> None:
        """Keep what a client says it applied the request's update to."""
        with self.umig.transaction():
            for receipt in receipts:
                storable = receipt.encode(errors="replace").decode()  # clients send what they like
                self._execute("INSERT INTO receipt VALUES (?, ?)", id_, storable)

    def receipts(self, id_: int) -> tuple[str, ...]:
        """All receipts of a request."""
        return tuple(
            r[0]
            for r in self._execute("SELECT receipt FROM receipt WHERE request_id = ? ORDER BY rowid", id_)
        )

    def applied(self, operation: str) -> tuple[str, ...]:
        """Names of the models whose checkpoints an operation changed."""
        rows = self._execute(
            "SELECT n.name FROM application a JOIN operation o ON o.id = a.operation_id "
            "JOIN node n ON n.id = a.node_id WHERE o.digest = ? ORDER BY n.id",
            operation,
        )
        return tuple(name for (name,) in rows)

    def sweep(self) -> None:
        """Remove what requests that are over have left."""
        going_on = {str(row.id) for row in self.interrupted()}
        for path in self.folder.glob("*"):
            if path.name not in going_on:
                shutil.rmtree(path, ignore_errors=True)

    def _run(self) -> int | None:
        (newest,) = self._execute("SELECT max(id) FROM run").fetchone()
        return None if newest is None else int(newest)

    def _rows(self, where: str, *values: Any) -> list[RequestRow]:
        query = f"SELECT id, run_id, content, settings, position, phase, facts FROM request WHERE {where} "
        out = []
        for id_, run, content, settings, position, phase, facts in self._execute(
            query + "ORDER BY id", *values
        ):
            asked = json.loads(content)
            request = ForgetRequest.from_json(asked)
            out.append(
                RequestRow(id_, run, request, json.loads(settings), position, phase, json.loads(facts))
            )
        return out

    def _execute(self, statement: str, *values: Any) -> Any:
        return self.umig.connection.execute(statement, values)


def _among(phases: Sequence[str]) -> str:
    return f"phase IN ({', '.join(repr(p) for p in phases)})"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
