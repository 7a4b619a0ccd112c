"""The demonstration behind ``make deploy-demo``: the quickstart on a SuperLink and SuperNodes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from simulations.deploy.engine import Deployment
from simulations.deploy.transcript import Follower, Transcript
from simulations.local_flower import RunFailedError, Value

APP = Path(__file__).parents[1] / "quickstart"


@dataclass
class Outcome:
    """How a demonstration ended.

    Attributes:
        folder: Where everything was written.
        seconds: How long it took.
        problems: What was not as it must be; empty when all is well.
        report: The request's report.json.
        ledger: What ``fl-unlearn status --json`` says of the store at the end.
    """

    folder: Path
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)


def demonstrate(
    folder: Path,
    *,
    supernodes: int,
    insecure: bool,
    config: dict[str, Value],
    keep_logs: bool,
    stream: IO[str],
    timeout: float = 1800.0,
) -> Outcome:
    """Start everything, train, forget, show what the store says, stop everything.

    Args:
        folder: Where to write; must not exist.
        supernodes: How many clients.
        insecure: Without TLS and keys.
        config: Run-config keys of the quickstart to override.
        keep_logs: Keep keys and logs even if all went well.
        stream: Where to print the transcript.
        timeout: Seconds that the run may take.
    """
    tell, store = Transcript(folder / "transcript.txt", stream), folder / "store"
    outcome = Outcome(folder)
    home = folder / "deployment" if keep_logs else None
    try:
        with Deployment(supernodes, insecure=insecure, home=home, tell=tell) as deployment:
            Follower(deployment.submit(APP, {**config, "out-dir": str(store)}), tell).finish(timeout)
            outcome.report, outcome.ledger = read_report(store), read_ledger(store, tell)
            outcome.problems += check(outcome.report, outcome.ledger, supernodes)
    except RunFailedError as e:
        outcome.problems.append(str(e))
    outcome.seconds = tell.seconds
    for problem in outcome.problems:
        tell(f"FAILED: {problem}")
    if not outcome.problems:
        tell(f"trained, forgot and stopped without a problem; the report: {store / 'report.md'}")
    return outcome


def read_report(store: Path) -> dict[str, Any]:
    """The report of the request; empty without one."""
    path = store / "report.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return report


def read_ledger(store: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """What ``fl-unlearn status`` says of a store; shown as it prints it.

    Raises:
        RunFailedError: If it fails.
    """
    said = {}
    for option in ([], ["--json"]):
        command = [sys.executable, "-m", "fl_unlearn.cli", "status", str(store), *option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunFailedError(f"`fl-unlearn status {store}` failed:\n{done.stdout}{done.stderr}")
        said[bool(option)] = done.stdout
    tell(f"fl-unlearn status {store}\n{said[False]}")
    ledger: dict[str, Any] = json.loads(said[True])
    return ledger


def check(report: dict[str, Any], ledger: dict[str, Any], supernodes: int) -> list[str]:
    """What of the end state is not as it must be."""
    if not report:
        return ["the run completed but wrote no report"]
    problems = []
    if report["outcome"] != "committed":
        problems.append(f"the request was not committed: {report['message']}")
    elif not ledger["operations"]:
        problems.append("the request is reported as committed, but the ledger has no operation")
    if waiting := [o["outstanding"] for o in ledger["operations"] if o["outstanding"]]:
        problems.append(f"clients have not confirmed the update: {waiting}")
    if len(report["clients"]["answered"]) != supernodes:
        problems.append(f"of {supernodes} clients {report['clients']['answered']} answered the request")
    if ledger["pending"]:
        problems.append(f"the store is not at rest: {ledger['pending']}")
    return problems
