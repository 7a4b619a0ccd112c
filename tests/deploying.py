"""Helpers for the tests of the deployment engine: runs of the quickstart, and what is left of them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.deploy.engine import Deployment
from simulations.deploy.transcript import Transcript
from simulations.local_flower import Value

TRAINING: dict[str, Value] = {"num-server-rounds": 2, "alpha": 10.0, "fraction-evaluate": 0.0}
REQUEST: dict[str, Value] = {**TRAINING, "num-server-rounds": 0, "forget-classes": "3"}


@contextmanager
def telling(deployment: Deployment, name: str, folder: Path) -> Iterator[Transcript]:
    """A transcript of one test on a deployment, kept below $FL_UNLEARN_TRANSCRIPTS if that is set."""
    kept = os.environ.get("FL_UNLEARN_TRANSCRIPTS")
    tell = Transcript((Path(kept) if kept else folder) / f"{name}.txt", io.StringIO())
    before, deployment.tell = deployment.tell, tell
    try:
        yield tell
    finally:
        deployment.tell = before


def report(store: Path) -> dict[str, Any]:
    """The report of a run's request."""
    return json.loads((store / "report.json").read_text())
