"""What was measured of a graph under one way to forget, kept by what decides it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulations.inheritance.kept import read_json, write_json
from simulations.inheritance.results import Row


@dataclass(frozen=True)
class Point:
    """One way to forget with one set of settings.

    Attributes:
        rows: What was measured of the affected models; empty when refused.
        seconds: Computing time of all owners together; on a CPU, processor time.
        thresholds: Affected model to the t of its update, of the last one where it got several.
        dampenings: The same for lambda.
        refused: Why nothing was changed.
    """

    rows: tuple[Row, ...]
    seconds: float
    thresholds: Mapping[str, float]
    dampenings: Mapping[str, float]
    refused: str = ""


class Points:
    """Points in a JSON file.

    Args:
        path: The file; made with the first points.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = read_json(path) or {}

    def get(self, what: Mapping[str, Any]) -> Point | None:
        """The point that ``what`` decides; None: it was not measured."""
        plain = self._found.get(_key(what))
        if plain is None:
            return None
        return Point(**{**plain, "rows": tuple(Row(**row) for row in plain["rows"])})

    def put(self, points: Iterable[tuple[Mapping[str, Any], Point]]) -> None:
        """Keep points, each with what decides it."""
        new = {_key(what): asdict(point) for what, point in points}
        if new:
            self._found |= new
            write_json(self._path, self._found)


def _key(what: Mapping[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)
