"""A Grid that is watched: how long each question to the clients took, and what memory the process had."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Message
from flwr.serverapp import Grid

_STEP = 0.01  # seconds between looks at the memory


def resident() -> int:
    """Bytes of memory that this process has (Linux), garbage collected first."""
    gc.collect()
    return _resident()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Phase:
    """One question to many clients.

    Attributes:
        question: What was asked.
        began: Seconds since the watch began.
        messages: How many clients were asked.
        peak: The most memory seen until the next question, bytes.
    """

    question: str
    began: float
    messages: int = 0
    peak: int = 0


class Watch(Grid):
    """Passes everything on to a Grid; between ``with`` and its end it keeps a record.

    Attributes:
        seconds: How long that was.
        peak: The most memory seen, bytes.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.seconds, self.peak = 0.0, 0
        self._phases: list[Phase] = []
        self._began, self._over = 0.0, threading.Event()

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._phases = [Phase("before", 0.0, 0, _resident())]
        self._over.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self._over.set()
        self._thread.join()
        self.peak = max(p.peak for p in self._phases)

    def _look(self) -> None:
        while not self._over.wait(_STEP):
            self._phases[-1].peak = max(self._phases[-1].peak, _resident())

    def phases(self) -> list[dict[str, Any]]:
        """Each question, with the time and the memory until the next one: the server's work included."""
        ends = [*(p.began for p in self._phases[1:]), self.seconds]
        return [
            {
                "question": p.question,
                "clients": p.messages,
                "seconds": end - p.began,
                "peak_bytes": p.peak,
            }
            for p, end in zip(self._phases, ends, strict=True)
        ]

    # ------------------------------------------------------------------ Grid
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Note a question that is new, and pass it on."""
        messages = list(messages)
        for m in messages if self._phases else []:
            question = m.metadata.message_type.rpartition("unlearn_")[2]
            if question != self._phases[-1].question:
                self._phases.append(Phase(question, time.perf_counter() - self._began, 0, _resident()))
            self._phases[-1].messages += 1
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the Grid does."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the Grid does."""
        return self.grid.send_and_receive(messages, timeout=timeout)

    def get_node_ids(self) -> Iterable[int]:
        """As the Grid does."""
        return self.grid.get_node_ids()

    def set_run(self, run: Any) -> None:
        """As the Grid does."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the Grid does."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the Grid does."""
        return self.grid.create_message(*args, **kwargs)
