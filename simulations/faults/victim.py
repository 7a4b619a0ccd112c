"""A process that works on a store until something happens to it."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_unlearn import lineage_file
from fl_unlearn.operations import OperationLedger
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import StoreError
from simulations.faults.tape import Tape
from simulations.faults.watch import Watch
from simulations.faults.work import KEEP_ALL, Action, Apply, Open, Prune, Round, Settle, perform

HARMLESS, FAILED, HELD = 0, 3, 4
_FILES = ("opening", "recovering", "appending", "staging", "finishing")
FULL = {
    "files": _FILES,
    "ledger": ("appending", "deciding"),
    "limit": (*_FILES, "deciding", "pruning", "settling"),
}
"""How a disk is full (files get no room; the SQLite file may not grow; the system refuses to grow any file
beyond a few kilobytes), and in which phases that is tried."""

_PHASES = {Round: "appending", Apply: "staging", Prune: "pruning", Settle: "settling"}
_NO_LIMIT = 1 << 30  # pages of an SQLite file


@dataclass(frozen=True)
class Trigger:
    """When something happens: ``amount`` after the phase was entered for the ``nth`` time.

    Attributes:
        phase: One of `tape.PHASES`.
        nth: From 1 up.
        clock: Whether ``amount`` is in seconds; otherwise in steps on the disk.
        amount: At least 0.
        full: None to kill the process; one of `FULL` for a disk that is full until the action ends.
    """

    phase: str
    nth: int
    clock: bool
    amount: float
    full: str | None = None


def fork(tape: Tape, base: Path, plan: Sequence[Action], trigger: Trigger | None, wait: float = 0.0) -> int:
    """Start a victim; returns its process id.

    Args:
        tape: What it leaves behind.
        base: The folder of the modelled disk; the store is in it.
        plan: What to do.
        trigger: What is to happen; the clock's is up to the parent.
        wait: How long to wait for another process that holds the store.
    """
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            code = _Victim(tape, base, trigger, wait).run(plan)
        except BaseException:
            tape.add("error", traceback.format_exc())
        finally:
            os._exit(code)
    return pid


def store_folder(base: Path) -> Path:
    """Where the store is: below a folder that its first opening makes too."""
    return base / "outputs" / "run"


class _Victim:
    def __init__(self, tape: Tape, base: Path, trigger: Trigger | None, wait: float) -> None:
        self.tape, self.base, self.trigger, self.wait = tape, base, trigger, wait
        self.store: RunStore | None = None
        self._left = trigger.nth if trigger and not trigger.clock else 0
        self._at: float | None = None
        self._limited = False
        self._connection: sqlite3.Connection | None = None
        self.watch = Watch(tape, str(base), self._step)

    def run(self, plan: Sequence[Action]) -> int:
        self._instrument()
        with self.watch:
            for number, action in enumerate(plan):
                self.tape.add("begin", number)
                try:
                    self._do(action)
                except StoreError as e:
                    if self.store is None and "another run" in str(e):
                        return HELD
                    if not self._relieve():
                        raise
                    self.tape.add("failed", number, type(e).__name__, self.tape.phase)
                    self.tape.add("begin", number)
                    self._do(action)  # with room again, the work goes on
                self._relieve()
                self.tape.add("end", number)
            self._enter("closing")
            if self.store is not None:
                self.store.close()
        return HARMLESS

    def _do(self, action: Action) -> None:
        if isinstance(action, Open):
            if self.store is not None:
                self._enter("closing")
                self.store.close()
                self.store = None
            self._enter("opening")
            self.store = RunStore(store_folder(self.base), keep=KEEP_ALL, wait=self.wait)
        else:
            assert self.store is not None
            self._enter(_PHASES[type(action)])
            perform(self.store, action)
        self._enter("idle")

    # ------------------------------------------------------------------ phases and steps
    def _instrument(self) -> None:
        self._within(RunStore, "recover", "opening", "recovering")
        self._within(OperationLedger, "decide", "staging", "deciding")
        self._within(OperationLedger, "finish", "deciding", "finishing")
        connect = lineage_file._connect

        def traced(path: str, read_only: bool) -> sqlite3.Connection:
            self._connection = connection = connect(path, read_only)
            connection.set_trace_callback(lambda _: self._step())
            return connection

        lineage_file._connect = traced

    def _within(self, owner: type, method: str, before: str, phase: str) -> None:
        real = getattr(owner, method)

        def entered(*args: Any, **kwargs: Any) -> Any:
            if self.tape.phase == before:
                self._enter(phase)
            return real(*args, **kwargs)

        setattr(owner, method, entered)

    def _enter(self, phase: str) -> None:
        self.tape.enter(phase, time.monotonic())
        if self.trigger and phase == self.trigger.phase and self._left:
            self._left -= 1
            if not self._left and self.trigger.full == "ledger":
                self._fill("ledger")  # now: nothing may be set while a statement is being traced
            elif not self._left:
                self._at = self.tape.steps + self.trigger.amount

    def _step(self) -> None:
        if self._at is not None and self.tape.steps >= self._at:
            assert self.trigger is not None
            if self.trigger.full is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                self._fill(self.trigger.full)
        self.tape.step()

    # ------------------------------------------------------------------ a full disk
    def _fill(self, how: str) -> None:
        self._at, self._limited = None, True
        self.tape.add("full", self.tape.phase)
        if how == "files":
            self.watch.full = True
        elif how == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        elif self._connection is not None:
            # Less than there is means: no more than there is.
            self._connection.execute("PRAGMA max_page_count = 1")

    def _relieve(self) -> bool:
        """There is room again; whether there was none."""
        limited, self._limited, self.watch.full = self._limited, False, False
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with suppress(sqlite3.ProgrammingError):  # closed
                if self._connection is not None:
                    self._connection.execute(f"PRAGMA max_page_count = {_NO_LIMIT}")
        return limited
