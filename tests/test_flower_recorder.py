"""Which model a round starts from: the one recorded last, unless somebody changed it."""

from __future__ import annotations

from pathlib import Path

import federation as fed
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fl_unlearn.flower import UnlearningStrategy, records
from fl_unlearn.flower.recorder import values_of

NAME = "head.bias"


def in_place(arrays: ArrayRecord, how: str, values: np.ndarray) -> None:
    if how == "another array":
        arrays[NAME] = Array(values)
    elif how == "other bytes":
        arrays[NAME].data = Array(values).data
    else:
        changed = ArrayRecord({n: Array(values) if n == NAME else a for n, a in arrays.items()})
        arrays.clear()
        arrays.update(changed)


@pytest.mark.parametrize("how", ["another array", "other bytes", "cleared and filled"])
def test_a_model_changed_in_place_between_rounds_is_noticed(how: str, tmp_path: Path) -> None:
    seen = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            in_place(arrays, how, arrays[NAME].numpy() + 1)
            seen.append(arrays[NAME].numpy())

    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    start = ArrayRecord(fed.build_model().state_dict())
    strategy.start(fed.grid(), start, num_rounds=3, evaluate_fn=evaluate)
    store = strategy.store
    assert [n.name for n in store.umig if "changed" in n.name] == ["r0002-global-changed"]
    assert store.umig.parents("r0002-global-changed") == {"r0002-global": 1.0}
    assert store.umig.parents("r0003-client-0") == {"r0002-global-changed": 1.0}
    np.testing.assert_array_equal(store.load("r0002-global-changed").state[NAME].numpy(), seen[0])
    assert not np.array_equal(store.load("r0002-global").state[NAME].numpy(), seen[0])


def test_the_same_values_in_other_objects_are_no_change(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    copy = records.to_arrays(records.to_state(result.arrays))
    assert all(copy[n].data is not a.data for n, a in result.arrays.items())
    strategy.configure_train(3, copy, ConfigRecord(), grid)
    assert not [n.name for n in strategy.store.umig if "changed" in n.name]
    in_place(copy, "another array", copy[NAME].numpy() + 1)
    strategy.configure_train(4, copy, ConfigRecord(), grid)
    assert [n.name for n in strategy.store.umig if "changed" in n.name]


def test_what_is_remembered_of_a_model_copies_nothing() -> None:
    arrays = ArrayRecord(fed.build_model().state_dict())
    before = values_of(arrays)
    assert all(kept is arrays[name].data for name, kept in before)
    in_place(arrays, "another array", arrays[NAME].numpy())
    assert values_of(arrays) == before
    for other in (arrays[NAME].numpy() + 1, arrays[NAME].numpy().astype(np.float64)):
        in_place(arrays, "another array", other)
        assert values_of(arrays) != before
    renamed = ArrayRecord({n + "x": a for n, a in arrays.items()})
    assert values_of(renamed) != values_of(arrays)
    turned = ArrayRecord(dict(reversed(arrays.items())))
    assert values_of(turned) != values_of(arrays)
