"""What an experiment found, as JSON: every figure and table is drawn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fl_unlearn.files import write_atomically

BEFORE, RETRAINED = "before", "retrained"
FILE = "result.json"


@dataclass(frozen=True)
class Row:
    """What was measured of one model, on test samples of labels that it has learned or inherited.

    Attributes:
        model: Its name.
        method: `BEFORE`, `RETRAINED`, or a method.
        forget: Accuracy on the labels to forget, 0 to 1; None: it never learned one.
        retained: Accuracy on its other labels; None: it has none.
    """

    model: str
    method: str
    forget: float | None
    retained: float | None


@dataclass(frozen=True)
class Spent:
    """What one method took, and found.

    Attributes:
        seconds: Computing time of all owners together; on a CPU, processor time.
        wall: Seconds from the request to the last update.
        rounds: How often owners were asked and waited for.
        facts: What a reader should know.
        refused: Why nothing was changed.
    """

    seconds: float
    wall: float
    rounds: int
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Result:
    """One experiment.

    Attributes:
        config: Its values by kebab-case key.
        about: The scenario's sentence, and the data set's.
        forget: The labels to forget.
        affected: The models that learned them.
        rows: What was measured: every model before, the affected ones after.
        train: Model to its owner's computing time in training, seconds.
        retrain: Affected model to the same without what is to be forgotten; empty: not retrained.
        spent: Method to what it took.
        passes: Model to how often its training goes over its owner's data, as does its retraining.
        sizes: "models", "affected", "owners", "train-samples", "test-samples", "parameters" of a model.
    """

    config: Mapping[str, Any]
    about: Mapping[str, str]
    forget: tuple[int, ...]
    affected: tuple[str, ...]
    rows: tuple[Row, ...]
    train: Mapping[str, float]
    retrain: Mapping[str, float]
    spent: Mapping[str, Spent]
    passes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Every model, parents before children."""
        return [r.model for r in self.rows if r.method == BEFORE]

    def row(self, model: str, method: str) -> Row | None:
        """What was measured of one model; None: it was not."""
        return next((r for r in self.rows if (r.model, r.method) == (model, method)), None)

    def save(self, folder: Path) -> None:
        """Write ``result.json``."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Result | None:
        """Read ``result.json``; None where there is none."""
        path = folder / FILE
        if not path.is_file():
            return None
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(**r) for r in plain["rows"])
        spent = {name: Spent(**s) for name, s in plain["spent"].items()}
        lists = {key: tuple(plain[key]) for key in ("forget", "affected")}
        return cls(**{**plain, **lists, "rows": rows, "spent": spent})
