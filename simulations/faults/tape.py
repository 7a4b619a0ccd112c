"""A record in shared memory, which outlives the process that writes it, however that ends."""

from __future__ import annotations

import ctypes
import mmap
import pickle
import threading
from typing import Any

PHASES = (
    "idle", "opening", "recovering", "appending", "pruning", "staging", "deciding", "finishing", "settling",
    "closing",
)  # fmt: skip
_HEADER = 64
_SIZE = 64 << 20  # reserved, not used: pages come with the first write to them

Record = tuple[Any, ...]


class Tape:
    """Records of one victim, appended by it and read by its parent; made before the fork.

    Attributes:
        steps: How many steps the victim has made on the disk.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SIZE)
        # One aligned store each: a reader, or a kill, never sees half of one.
        self._end, self._phase, self._entered, self._steps = (
            ctypes.c_uint64.from_buffer(self._map, 8 * i) for i in range(4)
        )
        self._end.value = _HEADER
        self._lock = threading.Lock()

    @property
    def steps(self) -> int:
        """How many steps the victim has made on the disk."""
        return self._steps.value

    @property
    def phase(self) -> str:
        """What the victim is doing."""
        return PHASES[self._phase.value]

    @property
    def entered(self) -> int:
        """How often the victim has changed its phase."""
        return self._entered.value

    def add(self, *record: Any) -> None:
        """Append a record; it is there wholly or not at all."""
        data = pickle.dumps(record)
        with self._lock:
            at = self._end.value
            self._map[at : at + 8] = len(data).to_bytes(8, "little")
            self._map[at + 8 : at + 8 + len(data)] = data
            self._end.value = at + 8 + len(data)

    def enter(self, phase: str, time: float) -> None:
        """Note the beginning of a phase, and the time in seconds."""
        self.add("phase", phase, time, self.steps)
        self._phase.value = PHASES.index(phase)
        self._entered.value += 1

    def step(self) -> None:
        """Count a step on the disk."""
        with self._lock:
            self._steps.value += 1

    def records(self) -> list[Record]:
        """All of them."""
        out, at, end = [], _HEADER, self._end.value
        while at < end:
            size = int.from_bytes(self._map[at : at + 8], "little")
            out.append(pickle.loads(self._map[at + 8 : at + 8 + size]))
            at += 8 + size
        return out
