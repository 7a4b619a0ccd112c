"""What a transcript of a deployment tells: what was done, and what matters of a run's output as it comes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from simulations.deploy.engine import Run
from simulations.local_flower import RunFailedError

_TOLD = re.compile(
    r"\[ROUND|results and \d+ failures|MetricRecord: \{'test-loss'|^asking |^staged |^committed |^refused"
    r"|^Output folder|^the request took|did not answer|failed at|are back|Error|Traceback"
    r"|^  accuracy|^ +before  "
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


class Follower:
    """Tells what matters of a run's output, each line once.

    Args:
        run: The run.
        tell: Called with each line.
    """

    def __init__(self, run: Run, tell: Callable[[str], None]) -> None:
        self.run, self.tell, self._told = run, tell, 0

    def until(self, pattern: str, timeout: float = 600.0) -> None:
        """Follow until the output has a text.

        Args:
            pattern: A regular expression.
            timeout: Seconds.

        Raises:
            RunFailedError: If the run ends without, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while True:
            over = not self.run.stream.runs
            text = self._catch_up(all_of_it=over)
            if re.search(pattern, text):
                return
            if over or time.monotonic() > deadline:
                raise RunFailedError(f"run {self.run.id} did not say {pattern!r}:\n{text[-3000:]}")
            time.sleep(0.1)

    def finish(self, timeout: float = 1800.0) -> None:
        """Follow until the end.

        Raises:
            RunFailedError: If the run does not complete in time.
        """
        deadline = time.monotonic() + timeout
        while self.run.stream.runs and time.monotonic() < deadline:
            self._catch_up()
            time.sleep(0.3)
        self._catch_up(all_of_it=True)
        self.run.finish(0.0)
        self.tell("the run is finished:completed")

    def _catch_up(self, *, all_of_it: bool = False) -> str:
        text = self.run.stream.text()
        lines = text.split("\n")
        if not all_of_it:  # the last one may be half written
            del lines[-1]
        for line in lines[self._told :]:
            plain = re.sub(r"^(INFO|WARNING|ERROR) *:\s*", "", line)
            if _TOLD.search(plain):
                self.tell("  " + plain.strip("\t ├└─>│"))
        self._told = len(lines)
        return text
