"""Kill a process with SIGKILL at its n-th step on the disk, to see what the next start makes of the rest."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from typing import Any

from fl_unlearn import lineage_file

Step = Callable[..., None]


def killed_at(at: int, work: Callable[[Callable[[], None]], None]) -> bool:
    """Run ``work`` in a forked process and kill that at step ``at``; whether it came so far.

    A step is half a file written, a file written, synced, renamed or removed, and every SQL statement.
    ``work`` is given a function; steps count from when it is called.
    """
    return killed(lambda: work(_instrument(at)))


def killed(work: Callable[[], Any]) -> bool:
    """Run ``work`` in a forked process; whether it was killed, or came to its end."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the process failed of itself; see its traceback"
    return False


def _instrument(at: int) -> Callable[[], None]:
    left: list[int] = []

    def step(*_: Any) -> None:
        if left:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    for call in ("replace", "fsync", "fdatasync", "unlink"):
        setattr(os, call, _before(step, getattr(os, call)))
    os.write, os.pwrite = _torn(step, os.write), _torn(step, os.pwrite)  # type: ignore[assignment]
    connect = lineage_file._connect

    def traced(path: str, read_only: bool) -> sqlite3.Connection:
        connection = connect(path, read_only)
        connection.set_trace_callback(step)
        return connection

    lineage_file._connect = traced
    return lambda: left.append(at)


def _before(step: Step, call: Callable[..., Any]) -> Callable[..., Any]:
    def stepped(*args: Any, **kwargs: Any) -> Any:
        step()
        return call(*args, **kwargs)

    return stepped


def _torn(step: Step, call: Callable[..., int]) -> Callable[..., int]:
    """Half of what is written is on the disk before the rest is."""

    def torn(fd: int, data: Any, *offset: int) -> int:
        middle = len(data) // 2
        call(fd, data[:middle], *offset)
        step()
        return middle + call(fd, data[middle:], *(o + middle for o in offset))

    return torn
