"""How much memory the processes of a deployment take at most, by what they are."""

from __future__ import annotations

import re
import threading
from collections import Counter
from types import TracebackType
from typing import Self

from simulations.deploy.engine import Deployment

_ROLE = re.compile(r"(?:^|/|\s)(flower-superlink|flwr-serverapp|flower-supernode|flwr-clientapp)(?:\s|$)")


class PeakMemory:
    """Looks at a deployment's processes again and again while the block runs.

    Args:
        deployment: Whose.
        interval: Seconds between two looks; what comes and goes in between is missed.

    Attributes:
        peak: The most that one process of a kind had resident at a time, in bytes, by the kind.
    """

    def __init__(self, deployment: Deployment, interval: float = 0.5) -> None:
        self.deployment, self.interval = deployment, interval
        self.peak: dict[str, int] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self.interval):
            for row in self.deployment.processes.left():
                if match := _ROLE.search(row.command):
                    self.peak[match[1]] = max(self.peak[match[1]], row.memory)
