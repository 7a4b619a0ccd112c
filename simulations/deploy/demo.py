"""The demonstration behind ``make deploy-demo``: the quickstart on a SuperLink and SuperNodes of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from simulations.deploy.engine import Deployment, Run
from simulations.local_flower import RunFailedError, Value

APP = Path(__file__).parents[1] / "quickstart"

_TOLD = re.compile(
    r"\[ROUND|results and \d+ failures|'test-accuracy'|^asking |^staged |^committed |^refused|^Output folder"
    r"|did not answer|failed at|are back|Error|Traceback|^  accuracy|^ +before  "
)
"""The lines of the server's output that a transcript shows."""


class Transcript:
    """Prints lines with the seconds since its start, and keeps them in a file.

    Args:
        path: The file.
        stream: Where to print.
    """

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path, self.stream, self._started = path, stream, time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def __call__(self, text: str) -> None:
        """Print and keep a text."""
        stamp = f"{self.seconds:6.1f} s  "
        lines = text.rstrip().split("\n")
        text = "\n".join([stamp + lines[0], *(" " * len(stamp) + line for line in lines[1:])])
        print(text, file=self.stream, flush=True)
        with open(self.path, "a") as file:
            file.write(text + "\n")


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


def follow(run: Run, tell: Callable[[str], None], timeout: float) -> None:
    """Tell what matters of a run's output as it comes, until its end.

    Raises:
        RunFailedError: If it does not complete in time.
    """
    deadline, told = time.monotonic() + timeout, 0
    while True:
        over = not run.stream.runs or time.monotonic() > deadline
        lines = run.stream.text().split("\n")
        complete = lines if over else lines[:-1]  # the last one may be half written
        for line in complete[told:]:
            plain = re.sub(r"^(INFO|WARNING|ERROR) *:\s*", "", line)
            if _TOLD.search(plain):
                tell("  " + plain.strip("\t ├└─>│"))
        told = len(complete)
        if over:
            run.finish(max(1.0, deadline - time.monotonic()))
            return
        time.sleep(0.3)


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
            follow(deployment.submit(APP, {**config, "out-dir": str(store)}), tell, timeout)
            tell("the run is finished:completed")
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
