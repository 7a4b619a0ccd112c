"""Lineage as a run goes: what was sent, what came back, what was made of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.flower.recovery import Recovery
from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_log import Run
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, ModelMismatchError, StoreError

log = logging.getLogger(__name__)

Values = list[tuple[str, bytes]]
"""Names and serialised values, in the model's order."""


@dataclass
class Update:
    """One client's update, as it came: strategies may change or empty the reply afterwards."""

    owner: str
    examples: int | None
    weight: float
    state: dict[str, torch.Tensor] | None
    metrics: dict[str, int | float]


class Recorder:
    """Appends one run to a store.

    Rounds go on from the last round in the store, so that a run can be continued.

    Args:
        store: Where to record.
        recovery: Keeps what is needed to go on with each model recorded.
        weighted_by_key: The metric that holds a client's number of examples.
    """

    def __init__(self, store: RunStore, recovery: Recovery, weighted_by_key: str = "num-examples") -> None:
        self.store, self.recovery, self.key = store, recovery, weighted_by_key
        self._warned = False
        self.begin_run()

    def begin_run(self) -> None:
        """Count rounds from the last one in the store on."""
        self.offset = max(self.store.umig.last_round(), 0)
        self.current: str | None = None
        self._last: ArrayRecord | None = None
        self._values: Values = []
        self._previous = 0

    def resume_run(self, run: Run, arrays: ArrayRecord, node: str | None) -> None:
        """Count on from the last round of a run; ``arrays`` is its model, ``node`` that model's."""
        self.begin_run()
        self.offset, self._previous = run.shift, run.done
        if node is not None:
            self.current, self._last, self._values = node, arrays, values_of(arrays)

    def broadcast(self, server_round: int, arrays: ArrayRecord) -> None:
        """Note the model that a round starts from: the one recorded last, unless somebody changed it."""
        if server_round <= self._previous:  # a second schedule of rounds in the same run
            self.offset = self.store.umig.last_round() - server_round + 1
        self._previous = server_round
        values = values_of(arrays)
        if arrays is self._last and self.current is not None and values == self._values:
            return
        with self.store.round():
            if self.current is None:
                current = self._begin(arrays, self.offset + server_round - 1)
            elif values != self._values:
                current = self._record_changed(arrays, self.current, self.offset + server_round - 1)
            else:
                current = self.current
            self.recovery.save(current, arrays)
        self.current, self._last, self._values = current, arrays, values
        self.store.runs.sweep()

    def read_updates(self, server_round: int, replies: Mapping[str, RecordDict]) -> list[Update]:
        """Copy what is to be recorded of the clients' replies, before the strategy sees them."""
        keeps = self.store.keep.keeps(NodeKind.CLIENT_UPDATE, self.offset + server_round)
        updates = []
        for owner, content in replies.items():
            metrics = _metrics(content)
            examples = metrics.get(self.key)
            state = None
            if keeps:
                for arrays in content.array_records.values():
                    state = self._client_state(owner, arrays)
                    break
            examples = int(examples) if examples is not None and examples >= 0 else None
            updates.append(Update(owner, examples, 1.0, state, metrics))
        counts = [u.examples for u in updates]
        known = None not in counts and any(counts)
        total = sum(c or 0 for c in counts)
        for u in updates:
            # A weight of 0 would say that nothing was inherited, which a strategy need not have meant.
            u.weight = max((u.examples or 0) / total, 1e-12) if known else 1 / len(updates)
        return updates

    def record_round(self, server_round: int, updates: list[Update], arrays: ArrayRecord | None) -> None:
        """Record a round's updates and its aggregate (None: aggregation failed) in one transaction."""
        if self.current is None:
            raise StoreError("a round was aggregated before any model was sent; call configure_train first")
        round_ = self.offset + server_round
        made = f"r{round_:04d}-global"
        with self.store.round():
            parents = {}
            for u in updates:
                name = f"r{round_:04d}-client-{u.owner}"
                self.store.record(
                    name,
                    u.state,
                    kind=NodeKind.CLIENT_UPDATE,
                    round_=round_,
                    parents={self.current: 1.0},
                    owner=u.owner,
                    examples=u.examples,
                    metadata={"metrics": u.metrics} if u.metrics else None,
                )
                parents[name] = u.weight
            if arrays is not None:
                state = self._state(arrays, NodeKind.AGGREGATE, round_)
                self.store.record(
                    made,
                    state,
                    kind=NodeKind.AGGREGATE,
                    round_=round_,
                    parents=parents or {self.current: 1.0},
                )
            current, last = (self.current, self._last) if arrays is None else (made, arrays)
            if last is not None:
                self.recovery.save(current, last)
            self.recovery.advance(server_round, self.offset)
        if arrays is not None:
            self.current, self._last, self._values = made, arrays, values_of(arrays)
        self.store.runs.sweep()
        self.store.prune()

    @property
    def live(self) -> ArrayRecord | None:
        """The arrays of the current model, as whoever runs the rounds holds them; None before any round."""
        return self._last

    def refresh(self, arrays: ArrayRecord) -> None:
        """Note that the current model's arrays were replaced in place by their unlearned values."""
        self._last, self._values = arrays, values_of(arrays)

    def _begin(self, arrays: ArrayRecord, round_: int) -> str:
        """The node of the model a run starts from: the store's newest global one, or one that follows it."""
        if self._has_values(arrays):
            self.store.check_model(records.signature(arrays))
        umig = self.store.umig
        newest = umig.last(NodeKind.AGGREGATE) or umig.last(NodeKind.INITIAL)
        if newest is None:
            name, state = "r0000-initial", self._state(arrays, NodeKind.INITIAL, 0)
            self.store.record(name, state, kind=NodeKind.INITIAL, round_=0)
            return name
        if self.store.info(newest.name) is not None:
            state = self.store.load(newest.name).state
            if values_of(records.to_arrays(state)) == values_of(arrays):
                return newest.name
        # Whatever it is (the same model after a change of dtype, say), it may have inherited from the newest.
        return self._record_changed(arrays, newest.name, round_)

    def _record_changed(self, arrays: ArrayRecord, parent: str, round_: int) -> str:
        name = self._free(f"r{round_:04d}-global-changed")
        state = self._state(arrays, NodeKind.AGGREGATE, round_)
        self.store.record(name, state, kind=NodeKind.AGGREGATE, round_=round_, parents={parent: 1.0})
        return name

    def _state(self, arrays: ArrayRecord, kind: str, round_: int) -> dict[str, torch.Tensor] | None:
        """The tensors to keep; None when none are kept, or they are no model of fixed shape."""
        if not self._has_values(arrays) or not self.store.keep.keeps(kind, round_):
            return None
        state = records.to_state(arrays)
        if kind == NodeKind.AGGREGATE:
            try:
                self.store.check_model(records.signature(arrays))
            except ModelMismatchError as e:
                if not self._warned:
                    log.warning(
                        "the global model changes its shape; its lineage is recorded without it: %s", e
                    )
                self._warned = True
                return None
        return state

    def _has_values(self, arrays: ArrayRecord) -> bool:
        """Whether these are values that can be kept and dampened; a model that has none is noted, once."""
        store = self.store
        if not len(arrays) or store.undampenable is not None:
            return False
        floats = any("float" in array.dtype for array in arrays.values())
        if store.signature() is None and not floats:
            store.set_undampenable(
                "the model holds no arrays of floating-point values (it is made of trees, say, or sent as "
                "raw bytes), so only its lineage and its metrics are recorded, and nothing of it can be "
                "dampened; to forget, train it again without the data"
            )
            log.warning("%s", store.undampenable)
            return False
        return True

    def _client_state(self, owner: str, arrays: ArrayRecord) -> dict[str, torch.Tensor] | None:
        if not self._has_values(arrays):
            return None
        try:
            self.store.check_model(records.signature(arrays))
            return records.to_state(arrays)
        except (ModelMismatchError, AnswerError) as e:
            log.warning("the update of client %s is recorded without its values: %s", owner, e)
            return None

    def _free(self, name: str) -> str:
        number, candidate = 1, name
        while candidate in self.store.umig:
            number += 1
            candidate = f"{name}-{number}"
        return candidate


def _metrics(content: RecordDict) -> dict[str, int | float]:
    """The finite numbers among a reply's metrics."""
    return {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53
    }


def values_of(arrays: ArrayRecord) -> Values:
    """What an ArrayRecord holds now, to be compared with ``==`` later.

    Nothing is copied or hashed: the bytes objects themselves are kept. They cannot change, so that whoever
    changes the record must put others in their place; where the same ones are still there, comparing two
    lists looks at none of their bytes, and otherwise it compares all of them.
    """
    return [(name, array.data) for name, array in arrays.items()]
