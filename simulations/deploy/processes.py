"""Processes of one's own: each leads a session, and is stopped by process id with all that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from simulations.local_flower import RunFailedError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Row:
    """One line of the system's list of processes; ``memory`` in bytes, pages shared with others included."""

    pid: int
    parent: int
    group: int
    memory: int
    command: str


@dataclass
class Started:
    """A process that was started here.

    Attributes:
        name: What to call it in messages.
        process: The process itself.
        log: The file that its output goes to.
        since: Where in that file its output begins.
        groups: Process groups seen of it and of what it started: Flower's SuperLink starts some in sessions
            of their own, which outlive a parent that is killed.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    since: int = 0
    groups: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def text(self) -> str:
        """Its output so far, without colours."""
        return _COLOUR.sub("", self.log.read_bytes()[self.since :].decode(errors="replace"))

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until its output has a text.

        Args:
            pattern: A regular expression.
            timeout: Seconds.

        Raises:
            RunFailedError: If it ends without, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while True:
            over = not self.runs  # asked first: what it wrote before its end is in the text then
            if match := re.search(pattern, self.text()):
                return match
            if over or time.monotonic() > deadline:
                why = f"ended with status {self.process.returncode}" if over else f"ran for {timeout:g} s"
                raise RunFailedError(f"{self.name} {why} and did not say {pattern!r}:\n{self.text()[-3000:]}")
            time.sleep(0.1)


class Processes:
    """All processes that a script started, to be stopped together."""

    def __init__(self) -> None:
        self._started: list[Started] = []

    def start(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str], folder: Path
    ) -> Started:
        """Start a process in a session of its own, so that a Ctrl-C in the terminal does not reach it.

        Args:
            name: What to call it in messages.
            command: The command line.
            log: File for its output, which is appended to.
            env: Its environment.
            folder: Its working directory.
        """
        with open(log, "ab") as sink:
            since = sink.tell()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=folder,
                start_new_session=True,
            )
        started = Started(name, process, log, since, {process.pid})
        self._started.append(started)
        return started

    def family(self, started: Started) -> list[Row]:
        """The process and what it started, as far as they run; its groups are noted."""
        roots = {started.pid} if started.runs else set()
        rows, found = _listing(), dict[int, Row]()
        while new := [
            r
            for r in rows
            if r.pid not in found and (r.pid in roots or r.group in started.groups or r.parent in found)
        ]:
            found.update({r.pid: r for r in new})
            started.groups |= {r.group for r in new} - {os.getpgrp()}
        if not found:  # the system gives the numbers to others now
            started.groups.clear()
        return list(found.values())

    def stop(
        self,
        *which: Started,
        signs: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL),
        patience: float = 15.0,
    ) -> None:
        """Stop processes and what they started.

        Args:
            which: The processes.
            signs: What to send, one after the other, to those that still run.
            patience: Seconds to wait after each.
        """
        for sign in signs:
            for member in [row.pid for started in which for row in self.family(started)]:
                with suppress(ProcessLookupError):
                    os.kill(member, sign)
            deadline = time.monotonic() + patience
            while any(map(self.family, which)) and time.monotonic() < deadline:
                time.sleep(0.2)
        self._started = [s for s in self._started if not any(s is w for w in which) or self.family(s)]

    def stop_all(self, last: Started | None = None) -> None:
        """Stop whatever still runs.

        Args:
            last: Stopped when all others have ended: what they say goodbye to.
        """
        with undisturbed():
            self.stop(*(s for s in self._started if s is not last))
            self.stop(*self._started)

    def left(self) -> list[Row]:
        """What still runs of all that was started."""
        return [row for started in self._started for row in self.family(started)]


def _listing() -> list[Row]:
    """All processes but zombies; ``ww``: a terminal's width must not cut the lines."""
    columns = ["-o", "pid=,ppid=,pgid=,rss=,stat=,args="]
    done = subprocess.run(["ps", "-axww", *columns], capture_output=True, text=True, check=True)
    rows = [line.split(None, 5) for line in done.stdout.splitlines()]
    return [
        Row(int(r[0]), int(r[1]), int(r[2]), 1024 * int(r[3]), r[5])
        for r in rows
        if len(r) == 6 and not r[4].startswith("Z")
    ]


@contextmanager
def undisturbed() -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM are not heard: a second one must leave no process behind."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread alone
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
