"""Going on where a server died: what a strategy remembers is kept with each round, and given back."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_unlearn.flower import records, strategy_state
from fl_unlearn.flower.progress import decision_of, fail
from fl_unlearn.flower.server_state import dampen_arrays, dampen_strategy
from fl_unlearn.request_log import DONE
from fl_unlearn.run_log import Run
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ModelMismatchError

log = logging.getLogger(__name__)

_BY_ROUND = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class Recovery:
    """One strategy's runs in a store.

    Args:
        store: The run's store.
        strategy: The inner strategy, as the project configured it.

    Attributes:
        run: The run that is going on, or was last; None before any.
    """

    def __init__(self, store: RunStore, strategy: Strategy) -> None:
        self.store, self.strategy = store, strategy
        self.run: Run | None = None
        self._before: strategy_state.Baseline = {}

    def begin(self, rounds: int | None, shift: int) -> None:
        """Begin a run of so many rounds; ``shift`` is added to their numbers in the store."""
        for row in self.store.runs.requests.interrupted():
            # What is kept for one that nobody can take up any more derives from the forgotten data.
            if decision_of(self.store, row) is None:
                log.warning("request %d was interrupted in a run that does not go on; make it again", row.id)
                fail(self.store, row, "interrupted in a run that does not go on")
            else:  # clients that have not confirmed get the update at their next contact all the same
                self.store.runs.requests.note(row.id, DONE)
        self.run = self.store.runs.begin(rounds, shift)
        self._before = strategy_state.baseline(self.strategy)

    def resume(self, run: Run, initial: ArrayRecord) -> tuple[ArrayRecord, str | None]:
        """Take up a run that was interrupted.

        Args:
            run: The run.
            initial: The model it was begun with, for one that had not recorded it yet.

        Returns:
            The model to go on from, and its node (None if it is not recorded).

        Raises:
            ModelMismatchError: If ``initial`` is another model, or the strategy another one.
            CorruptCheckpointError: If what was kept was damaged.
        """
        self.store.check_model(records.signature(initial))
        self._before = strategy_state.baseline(self.strategy)
        refresh_snapshot(self.store)
        arrays, node = self._read(run, initial)
        self.store.runs.take_up(run)
        self.run = run
        log.warning(
            "the last run was interrupted after round %d of %s; it goes on from there, and the model given "
            "to start() is not used",
            run.done,
            run.rounds if run.rounds is not None else "an unknown number",
        )
        return arrays, node

    def _read(self, run: Run, initial: ArrayRecord) -> tuple[ArrayRecord, str | None]:
        snapshot = self.store.runs.snapshot()
        if snapshot is None or snapshot.run != run.id:
            return initial, None
        kept = self.store.info(snapshot.node) is not None
        live = records.to_arrays(self.store.load(snapshot.node).state) if kept else None
        data = snapshot.read()
        if data is None:
            return (live, snapshot.node) if live is not None else (self._newest(), None)
        memory, model = strategy_state.read(data, str(snapshot.file), live=live)
        arrays = live if model is None else model
        if arrays is None:
            return self._newest(), None
        try:
            strategy_state.restore(self.strategy, memory)
        except ModelMismatchError as e:
            raise ModelMismatchError(
                f"the run in {self.store.folder} was interrupted, and cannot go on with another strategy: "
                f"{e}. Use the same, or delete {snapshot.file} to go on with a fresh state of the strategy"
            ) from e
        if memory.unsaved:
            log.warning(
                "of what the strategy held, this could not be kept and is as it was constructed: %s",
                ", ".join(memory.unsaved),
            )
        return arrays, snapshot.node

    def _newest(self) -> ArrayRecord:
        return records.to_arrays(self.store.latest()[1].state)

    def save(self, node: str, arrays: ArrayRecord) -> None:
        """Keep what the strategy remembers beside the current model; without a run, nothing.

        Call it in the transaction that records the model, and `run_log.RunLog.sweep` after it.
        """
        if self.run is None:
            return
        with_model = self.store.info(node) is None
        data = strategy_state.write(self.strategy, self._before, live=arrays, with_model=with_model)
        operations = [o.digest for o in self.store.operations.all()]
        self.store.runs.save_snapshot(self.run.id, node, data, operations)

    def advance(self, done: int, shift: int) -> None:
        """Note how many rounds of the run are done."""
        if self.run is not None:
            self.store.runs.advance(self.run.id, done, shift)


def refresh_snapshot(store: RunStore) -> None:
    """Let the snapshot forget what the store has forgotten since it was written.

    Raises:
        CorruptCheckpointError: If the snapshot was damaged.
        StoreError: If it cannot be written; it is as it was, and the next start makes up for it.
    """
    snapshot = store.runs.snapshot()
    if snapshot is None:
        return
    operations = store.operations.all()
    missing = [o for o in operations if o.digest not in snapshot.operations]
    if not missing:
        return
    data = snapshot.read()
    if data is not None:
        stand_in = ArrayRecord()  # for the model, where its values are in a checkpoint
        memory, model = strategy_state.read(data, str(snapshot.file), live=stand_in)
        live = stand_in if model is None else model
        names = list(model if model is not None else store.signature() or ())
        for operation in missing:
            update = store.update(operation.client_update)
            if model is not None:
                dampen_arrays(model, update)
            _, skipped = dampen_strategy(memory, update, names, live)
            if skipped:
                log.warning("not understood, and left as it is, is what the server keeps in: %s", skipped)
        data = strategy_state.write(memory, {}, live=live, with_model=model is not None)
    digests = [o.digest for o in operations]
    store.runs.save_snapshot(snapshot.run, snapshot.node, data, digests)
    store.runs.sweep()


class Loop:
    """A call of a strategy's ``start``, so that it can be told to do fewer rounds than it was asked for.

    Args:
        start: The bound method.
        args: Its positional arguments after the grid and the model.
        kwargs: Its keyword arguments.
    """

    def __init__(self, start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.start, self.args, self.kwargs = start, list(args), dict(kwargs)
        parameters = inspect.signature(start).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):  # it passes on what it is given
            self._names = list(inspect.signature(Strategy.start).parameters)[3:]
        else:
            self._names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def rounds(self) -> int | None:
        """How many rounds were asked for; None when the loop is not told."""
        value = self._get("num_rounds")
        return value if type(value) is int and value >= 0 else None

    def go_on(self, done: int) -> None:
        """Change the call to one that follows ``done`` rounds."""
        if not done:
            return
        if self.rounds is None:
            log.warning("the strategy's own loop takes no num_rounds, so it runs all of its rounds again")
        else:
            self._set("num_rounds", max(self.rounds - done, 0))
        evaluate = self._get("evaluate_fn")
        if callable(evaluate):

            def evaluate_later(server_round: int, arrays: ArrayRecord) -> Any:
                return evaluate(server_round + done, arrays) if server_round else None

            self._set("evaluate_fn", evaluate_later)

    def run(self, grid: Grid, arrays: ArrayRecord) -> Any:
        """Call ``start``."""
        return self.start(grid, arrays, *self.args, **self.kwargs)

    def _place(self, name: str) -> int | None:
        place = self._names.index(name) if name in self._names else len(self.args)
        return place if place < len(self.args) else None

    def _get(self, name: str) -> Any:
        place = self._place(name)
        return self.kwargs.get(name, self._defaults.get(name)) if place is None else self.args[place]

    def _set(self, name: str, value: Any) -> None:
        place = self._place(name)
        if place is None:
            self.kwargs[name] = value
        else:
            self.args[place] = value


def renumber(result: Any, done: int) -> None:
    """Give what a `Result` has by round the rounds' true numbers."""
    for name in _BY_ROUND:
        values = getattr(result, name, None)
        if done and isinstance(values, dict):
            setattr(result, name, {r + done: v for r, v in values.items()})
