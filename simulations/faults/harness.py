"""Drawing faults, letting them happen, and looking at what the next start makes of it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_unlearn.run_store import RunStore
from fl_unlearn.types import StoreError
from simulations.faults.check import Problems, problems
from simulations.faults.counts import PROMPT, Counts
from simulations.faults.disk import MODES, Disk
from simulations.faults.tape import Record, Tape
from simulations.faults.victim import FULL, HARMLESS, Trigger, fork, store_folder
from simulations.faults.watch import Watch
from simulations.faults.work import KEEP_ALL, Action, Apply, Expected, Open, Prune, Round, Settle, plan

PATIENCE = 60.0
"""Seconds after which a process is stuck."""

# How often each phase is aimed at; a kill may come later than aimed, and is counted where it came.
_AIMS = {
    "opening": 2, "recovering": 2, "appending": 6, "pruning": 2, "staging": 5, "deciding": 4, "finishing": 8,
    "settling": 1, "closing": 1,
}  # fmt: skip
_ACTIONS: dict[str, type[Action]] = {
    "appending": Round, "pruning": Prune, "staging": Apply, "deciding": Apply, "finishing": Apply,
    "settling": Settle,
}  # fmt: skip
_KILLS_A_STORE = 12
_OPERATIONS_A_STORE = 9  # beyond 15, checkpoints outgrow the room in their headers, and the oracle's sizes


@dataclass
class _Extent:
    """How long a phase was at most, of late."""

    seconds: float = 0.01
    steps: int = 10

    def saw(self, seconds: float, steps: int) -> None:
        self.seconds = max(0.7 * self.seconds, min(seconds, 0.2))
        self.steps = max(int(0.9 * self.steps), steps, 2)


class _History:
    """One store from its first opening on, with its modelled disk."""

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.base, self.disk, self.kills = base, Disk(base), 0
        self.expected = Expected()
        self.pending: Action | None = None
        self.finished = False

    def take(self, actions: list[Action], records: list[Record]) -> None:
        """What was done is expected from now on; what was begun last may have been."""
        begun: Action | None = None
        for kind, *values in records:
            if kind == "begin":
                begun = actions[values[0]]
            elif kind == "failed":
                begun = None
            elif kind == "end" and begun is not None:
                self.expected, begun = self.expected.after(begun), None
        if not isinstance(begun, Open):
            self.pending = begun or self.pending

    def check(self) -> tuple[Problems, int]:
        """Open the store, which finishes or undoes things, and compare; returns also how many models."""
        tape = Tape()
        try:
            with Watch(tape, str(self.base)), RunStore(store_folder(self.base), keep=KEEP_ALL) as store:
                found = problems(store, self.expected)
                if self.pending is not None:
                    done = self.expected.after(self.pending)
                    with_it = problems(store, done) if found else found
                    self.finished = len(with_it) < len(found)
                    if self.finished:
                        found, self.expected = with_it, done
        except Exception as e:  # whatever it is, it is the finding
            return [("stuck", f"{type(e).__name__}: {e}")], 0
        self.disk.replay(tape.records())
        self.pending = None
        return found, len(self.expected.kept)


class Harness:
    """Kills processes until there were enough, on one store after another.

    Args:
        folder: Where to work; a folder of its own is made in it, and removed.
        seed: Of everything random; the instants of kills by the clock are never the same again.
        tell: Told about progress.
    """

    def __init__(self, folder: Path, seed: int, tell: Callable[[Counts], None] = lambda _: None) -> None:
        self.folder, self.rng, self.tell = folder, random.Random(seed), tell
        self.counts = Counts()
        self._extents = {phase: _Extent() for phase in _AIMS}
        self._stores = 0

    def run(self, kills: int) -> Counts:
        """Kill that many processes; a fifth as many meet a full disk first."""
        started = time.monotonic()
        history = self._new()
        self._play(history, None)  # to learn how long things take
        while self.counts.killed < kills:
            well = self._strike(history)
            worn = history.kills >= _KILLS_A_STORE or len(history.expected.operations) >= _OPERATIONS_A_STORE
            if worn or not well:
                self._close(history, well)
                history = self._new()
            self.counts.seconds = time.monotonic() - started
            self.tell(self.counts)
        self._close(history, True)
        self.counts.seconds = time.monotonic() - started
        return self.counts

    def _new(self) -> _History:
        self._stores += 1
        return _History(self.folder / f"disk-{self._stores}")

    def _close(self, history: _History, well: bool) -> None:
        """The work goes on to an end that nothing disturbs, if all is well; then the store is thrown away."""
        if well:
            self._play(history, None)
            self._look(history)
        shutil.rmtree(history.base)
        self.counts.done["stores"] += 1
        self.counts.done["rounds"] += history.expected.rounds
        for action in history.expected.operations.values():
            self.counts.done[f"updates {action.kind}"] += 1

    def _strike(self, history: _History) -> bool:
        """One fault, perhaps others while it is being repaired, and a look; whether all was well."""
        died = self._play(history, self._trigger())
        while died and self.rng.random() < 0.3:  # and again, while the next start repairs
            died = self._play(history, self._trigger("opening", "recovering"), [Open()])
        return self._look(history)

    def _trigger(self, *phases: str) -> Trigger:
        aims = phases or tuple(_AIMS)
        (phase,) = self.rng.choices(aims, [_AIMS[a] for a in aims])
        hows = [how for how, where in FULL.items() if phase in where]
        full = self.rng.choice(hows) if hows and self.rng.random() < 0.2 else None
        clock = full is None and self.rng.random() < 0.5
        extent = self._extents[phase]
        amount = self.rng.random() * 1.1 * (extent.seconds if clock else extent.steps)
        nth = 1 if phase in ("opening", "recovering", "pruning", "closing") else self.rng.choice((1, 1, 2))
        return Trigger(phase, nth, clock, amount, full)

    def _plan(self, expected: Expected, trigger: Trigger | None) -> list[Action]:
        """Something to do in which what is aimed at occurs, if that is possible."""
        for _ in range(20):
            actions = plan(expected, self.rng, self.rng.randint(3, 5))
            places = [
                n for n, a in enumerate(actions) if trigger and type(a) is _ACTIONS.get(trigger.phase, Open)
            ]
            if trigger is None or len(places) >= trigger.nth:
                break
        return actions

    def _look(self, history: _History) -> bool:
        interrupted = history.pending is not None
        found, models = history.check()
        if interrupted:
            self.counts.done[f"interrupted and {'finished' if history.finished else 'undone'}"] += 1
        self.counts.done["checkpoints compared"] += models
        self.counts.fail(found, f"store {self._stores}, kill {self.counts.killed}")
        return not found

    # ------------------------------------------------------------------ one process
    def _play(self, history: _History, trigger: Trigger | None, actions: list[Action] | None = None) -> bool:
        """Run one process; whether it was killed."""
        actions = actions or self._plan(history.expected, trigger)
        power, company = self.rng.random() < 0.5, self.rng.random() < 0.2
        if company:  # from here on the store is held without a break
            actions = [actions[0], *(a for a in actions[1:] if not isinstance(a, Open))]
        tape, waiting, heir = Tape(), Tape(), 0
        victim = fork(tape, history.base, actions, trigger)
        if company and not power:
            heir = self._heir(history, victim, tape, waiting)
        elif company and trigger and trigger.clock:
            self._intrude(history, victim, tape)
        status = self._supervise(victim, tape, trigger)
        if heir:
            self._end_of(heir)
        records = tape.records()
        self._learn(records)
        history.take(actions, records)
        history.disk.replay(records)
        killed = os.WIFSIGNALED(status)
        if killed:
            history.kills += 1
            self.counts.kills[tape.phase, PROMPT[power]] += 1
            self.counts.triggers["clock" if trigger and trigger.clock else "disk step"] += 1
        elif os.WEXITSTATUS(status) != HARMLESS:
            errors = [r[1] for r in records if r[0] == "error"] or ["the store was held by another process"]
            self.counts.fail([("unclear error", errors[-1])], f"store {self._stores}")
        history.disk.replay(waiting.records())
        if power:  # also when the process had ended: what it said was done must be there
            self.counts.done["unsynced changes at power cuts"] += history.disk.cut_power(
                self.rng, self.rng.choice(MODES)
            )
        else:
            history.disk.observe()
        return killed

    def _supervise(self, victim: int, tape: Tape, trigger: Trigger | None) -> int:
        """Wait for the end of a process, and bring it about when the clock says so; returns its status."""
        limit, at, seen, left = time.monotonic() + PATIENCE, None, 0, trigger.nth if trigger else 0
        while True:
            pid, status = os.waitpid(victim, os.WNOHANG)
            if pid:
                return status
            now = time.monotonic()
            if trigger and trigger.clock and at is None and tape.entered != seen:
                seen = tape.entered
                left -= tape.phase == trigger.phase
                at = now + trigger.amount if left == 0 else None
            if now > limit or (at is not None and now >= at):
                os.kill(victim, signal.SIGKILL)
                if now > limit:
                    self.counts.fail([("stuck", f"a process while {tape.phase}")], f"store {self._stores}")
                return os.waitpid(victim, 0)[1]
            time.sleep(0.0001)

    def _end_of(self, heir: int) -> None:
        status = self._supervise(heir, Tape(), None)
        self.counts.done["processes that waited for another"] += 1
        if status != HARMLESS:
            self.counts.fail([("stuck", "a process that waited for the store did not get it")], "heir")

    def _heir(self, history: _History, victim: int, tape: Tape, waiting: Tape) -> int:
        """Start the next process while the first one holds the store; it waits."""
        return fork(waiting, history.base, [Open()], None, wait=PATIENCE) if _holding(victim, tape) else 0

    def _intrude(self, history: _History, victim: int, tape: Tape) -> None:
        """Try to open a store that another process holds."""
        if _holding(victim, tape):
            try:
                RunStore(store_folder(history.base)).close()
                done = False
            except StoreError as e:
                done = "another run" in str(e)
            self.counts.done["second processes refused"] += done
            if not done and tape.phase not in ("idle", "closing"):
                self.counts.fail([("unclear error", "two processes had the store")], f"store {self._stores}")

    def _learn(self, records: list[Record]) -> None:
        phases = [r for r in records if r[0] == "phase"]
        for (_, phase, start, steps), (_, _, end, later) in itertools.pairwise(phases):
            if phase in self._extents:
                self._extents[phase].saw(end - start, later - steps)
        places = {}
        for number, (kind, *values) in enumerate(records):
            if kind == "full":
                places[number] = values[0]
            elif kind == "failed" and places:
                self.counts.disk_full[values[2], f"refused ({values[1]})"] += 1
                places.clear()
        for phase in places.values():
            self.counts.disk_full[phase, "without an error"] += 1


def _holding(victim: int, tape: Tape) -> bool:
    """Wait until a process has opened the store, or has ended; whether it has it."""
    while os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if tape.phase not in ("idle", "opening", "closing"):
            return True
        time.sleep(0.0001)
    return False
