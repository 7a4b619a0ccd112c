"""What a strategy has clients do: named functions of one client, so that any engine can run them.

A task gets tensors and plain settings, and answers with tensors and numbers: what fits into a message. It
keeps nothing between two calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fl_unlearn.types import StateDict
from strategies.client import Client
from strategies.errors import StrategyError

Setting = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]
Settings = Mapping[str, Setting]
"""Plain values by kebab-case name; lists are of one type."""

Tensors = Mapping[str, StateDict]
"""Models, and other tensors, by what they are: ``"model"``, ``"teacher"``..."""


@dataclass(frozen=True)
class Answer:
    """What a client answers.

    Attributes:
        samples: How many samples it is about; weighs in averages.
        tensors: Models, and other tensors, by name.
        numbers: Measured values by name; finite.
        notes: Texts by name, such as why something could not be measured.
        seconds: How long the client computed, of processor time on a CPU; filled in by `run`.
    """

    samples: int
    tensors: Tensors = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


TaskFn = Callable[[Client, Tensors, Settings], Answer]

TASKS: dict[str, TaskFn] = {}
"""Name to task; names start with the strategy's that it belongs to."""


def task(name: str) -> Callable[[TaskFn], TaskFn]:
    """Decorator that makes a function known to clients as ``name``.

    Raises:
        ValueError: If the name is taken.
    """

    def add(function: TaskFn) -> TaskFn:
        if name in TASKS:
            raise ValueError(f"there is a task {name!r} already; task names must be unique")
        TASKS[name] = function
        return function

    return add


def run(name: str, client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Run a task at a client; torch's random state depends on nothing that came before.

    Raises:
        StrategyError: If there is no such task.
    """
    if name not in TASKS:
        raise StrategyError(f"unknown task {name!r}; the known ones are {', '.join(sorted(TASKS))}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(client.index)
        # On a CPU the processor's time: what else the machine does is not the client's work.
        clock = time.process_time if client.device.type == "cpu" else time.perf_counter
        started = clock()
        answer = TASKS[name](client, tensors, settings)
        return replace(answer, seconds=clock() - started)
