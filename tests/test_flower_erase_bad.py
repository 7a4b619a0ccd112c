"""Statistics that cannot be true, requests and settings without sense: a clear error, nothing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import hypothesis
import numpy as np
import pytest
from cases_records import ARRAYS, VALUE
from federation_checks import THREE, unchanged
from federation_erase import all_data, deep, expected_erasure
from flwr.app import Array, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from test_flower_bad_input import change_head, spoiling
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.erase_layers import Hidden, Statistics
from fl_unlearn.flower import attach, records, statistics
from fl_unlearn.layer_stats import layer_sums
from fl_unlearn.types import (
    REST,
    AnswerError,
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    SettingsError,
    TensorSpec,
    UnlearnSettings,
    signature_of,
)


# --------------------------------------------------------------------------- bad answers and requests
def change_arrays(change: Callable[[str, np.ndarray], Any]) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        arrays = content.array_records[statistics.ARRAYS]
        for name in list(arrays):
            out = change(name, arrays[name].numpy().copy())
            del arrays[name]
            if out is not None:
                arrays[name] = out if isinstance(out, Array) else Array(np.asarray(out))

    return spoil


LIES: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "not finite": (change_arrays(lambda n, a: a * np.nan), "finite"),
    "overflowing": (change_arrays(lambda n, a: np.full_like(a, 1e308)), "trace|smaller|finite"),
    "negative moments": (change_arrays(lambda n, a: -a if "second" in n else a), "smaller than"),
    "means beyond the moments": (change_arrays(lambda n, a: a if "second" in n else 50 * a), "smaller than"),
    "other width": (change_arrays(lambda n, a: a[:-1]), "not"),
    "single precision": (change_arrays(lambda n, a: a.astype(np.float32)), "float64"),
    "integers": (change_arrays(lambda n, a: a.astype(np.int64)), "float64"),
    "garbage": (
        change_arrays(lambda n, a: Array("float64", a.shape, "numpy.ndarray", b"garbage")),
        "cannot be read",
    ),
    "petabytes": (
        change_arrays(lambda n, a: Array("float64", (10**15,), "numpy.ndarray", b"x")),
        "1000000000000000",
    ),
    "missing group": (change_arrays(lambda n, a: None if n == "1/sum/-1" else a), "not those asked for"),
    "no arrays": (change_arrays(lambda n, a: None), "not those asked for"),
    "no layer but sums": (change_head(layers=[], weights=[], shifts=[], roles=[]), "names no layer"),
    "unknown tensor": (change_head(weights=["body.weight"]), "does not know"),
    "unknown role": (change_head(roles=["scale"]), "does not know"),
    "another layer's bias": (change_head(shifts=["head.bias"]), "no floating-point tensors of one layer"),
    "weight and bias swapped": (
        change_head(weights=["hidden.bias"], shifts=["hidden.weight"]),
        "no floating-point tensors of one layer",
    ),
    "lists of other length": (change_head(shifts=[]), "lists of as many texts"),
    "layers as numbers": (change_head(layers=[1]), "lists of as many texts"),
    "a layer twice": (
        change_head(
            layers=["a", "b"], weights=["hidden.weight"] * 2, shifts=["hidden.bias"] * 2, roles=["bias"] * 2
        ),
        "twice",
    ),
    "negative counts": (change_head(counts=[-1, 46, 15, 45]), "counts must lie between"),
    "too few counts": (change_head(counts=[45]), "with 1 counts"),
    "other groups": (change_head(labels=[-1, 2]), "asked for the groups"),
    "absurd counts": (change_head(counts=[10**13] * 4), "counts must lie between"),
}


SIGNATURE = signature_of(fed.build_model().state_dict())


def answer() -> RecordDict:
    model, (x, y) = fed.build_model(), fed.client_data(1)
    sums = layer_sums(model, [(x, y)], ["hidden"], [3])["hidden"]
    hidden = Hidden("hidden", "hidden.weight", "hidden.bias", "bias", 24)
    return statistics.write("1", Statistics((hidden,), (sums, sums)), 0.5)


def read(content: RecordDict) -> Statistics:
    return statistics.read(content, groups=(3, REST), models=2, position=0, model=SIGNATURE)


def test_an_answer_there_and_back() -> None:
    got = read(answer())
    x, y = fed.client_data(1)
    expected = layer_sums(fed.build_model(), [(x, y)], ["hidden"], [3])["hidden"]
    assert got.layers == (Hidden("hidden", "hidden.weight", "hidden.bias", "bias", 24),)
    assert got.counts == {3: 15, REST: 45}
    for sums in got.sums:
        assert_close(sums.second, expected.second)
        assert_close(sums.sums, expected.sums)
    nothing = statistics.write("1", Statistics(), 0.0)
    assert read(nothing) == Statistics()
    with pytest.raises(AnswerError, match="asked about layer 2, but the client knows of 1"):
        statistics.read(answer(), groups=(3, REST), models=2, position=1, model=SIGNATURE)
    wide = {**SIGNATURE, "hidden.weight": TensorSpec((8193, 12), "float32")}
    with pytest.raises(AnswerError, match="no floating-point tensors of one layer, at most 8192 wide"):
        statistics.read(answer(), groups=(3, REST), models=2, position=0, model=wide)


@pytest.mark.parametrize("how", LIES)
@pytest.mark.filterwarnings("ignore")
def test_lies_are_told_from_answers(how: str) -> None:
    spoil, match = LIES[how]
    content = answer()
    spoil(content)
    with pytest.raises(AnswerError, match=match):
        read(content)


KEYS = ["layers", "weights", "shifts", "roles", "labels", "counts", "client", "protocol"]
NAMES = st.sampled_from(["0/second", "1/sum/3", "0/sum/-1", "2/second", "0/", ""])


@given(
    head=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=2),
    arrays=st.dictionaries(NAMES, st.none() | ARRAYS, max_size=2),
)
@hypothesis.settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_wild_answers(head: dict[str, Any], arrays: dict[str, Array | None]) -> None:
    content = answer()
    content[records.HEAD] = ConfigRecord({**content.config_records[records.HEAD], **head})
    record = content.array_records[statistics.ARRAYS]
    for name, array in arrays.items():
        if array is None:
            record.pop(name, None)
        else:
            record[name] = array
    try:
        got = read(content)
    except AnswerError:
        return
    for sums in got.sums:
        sums.validate()
    assert len(got.sums) in (0, 2)


E2E = {
    "not finite": (LIES["not finite"][0], "finite"),
    "another layer than the others": (
        change_head(layers=["head"], weights=["head.weight"], shifts=["head.bias"]),
        "not|other layers",
    ),
    "absurd counts": (change_head(counts=[10**9, 0]), "observations for each sample"),
    "outputs that hide all others'": (
        change_arrays(lambda n, a: 1e12 * a if "second" in n else a),
        "mean square",
    ),
    "silence about itself": (change_head(client=""), "names its client"),
}


@pytest.mark.parametrize("how", E2E)
def test_one_liar_is_left_out(how: str, tmp_path: Path) -> None:
    spoil, match = E2E[how]
    strategy, grid, result = deep(tmp_path, rounds=2)
    grid.tamper = spoiling(records.STATISTICS, {103}, spoil)
    x, y = all_data([0, 1, 2, 4])
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    (why,) = outcome.failed.values()
    assert re.search(match, why), why
    expected = expected_erasure(before, x, y, [3])
    weight = result.arrays.to_torch_state_dict()["hidden.weight"]
    assert_close(weight, expected["hidden.weight"], atol=1e-5, rtol=1e-4)


def test_only_liars(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, rounds=2)
    grid.tamper = spoiling(records.STATISTICS, set(grid.apps), LIES["not finite"][0])
    with unchanged(
        strategy, result.arrays, NotEnoughAnswersError, "0 of 5 clients gave.* answer to the statistics"
    ):
        strategy.forget(grid, THREE, result.arrays)


def test_a_client_without_data_has_nothing_to_say(tmp_path: Path) -> None:
    def data(context: Context) -> Any:
        partition = int(context.node_config["partition-id"])
        x, y = fed.client_data(partition)
        rows = slice(0, 0) if partition == 0 else slice(None)
        return DataLoader(TensorDataset(x[rows], y[rows]), batch_size=16)

    def make() -> ClientApp:
        return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")

    strategy, _, result = deep(tmp_path, rounds=3)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(fed.grid(make=make), THREE, result.arrays)
    assert outcome.committed
    assert outcome.failed == {}
    expected = expected_erasure(before, *all_data(range(1, 5)), [3])
    weight = result.arrays.to_torch_state_dict()["hidden.weight"]
    assert_close(weight, expected["hidden.weight"], atol=1e-5, rtol=1e-4)


def test_one_shot_iterators(tmp_path: Path) -> None:
    def data(context: Context) -> Any:
        return iter([fed.client_data(int(context.node_config["partition-id"]))])

    def make() -> ClientApp:
        return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")

    strategy, _, result = deep(tmp_path, rounds=3)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    assert strategy.forget(fed.grid(make=make), THREE, result.arrays).committed
    expected = expected_erasure(before, *all_data(), [3])
    weight = result.arrays.to_torch_state_dict()["hidden.weight"]
    assert_close(weight, expected["hidden.weight"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        (ForgetRequest((9,)), RequestError, "unknown class 9"),
        (ForgetRequest((3,), clients=("0",)), RequestError, "no client of the clients 0 holds class 3"),
        (ForgetRequest((3,), clients=("77",)), RequestError, "unknown clients"),
        (ForgetRequest((0, 1, 2, 3)), RequestError, "nothing would be retained"),
    ],
)
def test_senseless_requests(request_: ForgetRequest, error: Any, match: str, tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, rounds=2)
    with unchanged(strategy, result.arrays, error, match):
        strategy.forget(grid, request_, result.arrays)


def test_a_named_client_that_gives_no_statistics(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, rounds=2)
    grid.tamper = spoiling(records.STATISTICS, {101}, LIES["not finite"][0])
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, r"named clients \['1'\] did not answer"):
        strategy.forget(grid, ForgetRequest((3,), clients=("1",)), result.arrays)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"erase": " "}, "erase is empty"),
        ({"erase_strength": 0.0}, "above 0, at most 1"),
        ({"erase_strength": float("nan")}, "above 0, at most 1"),
        ({"erase_strength": 1.5}, "above 0, at most 1"),
        ({"erase_snapshots": 0}, "erase_snapshots must be at least 1"),
    ],
)
def test_senseless_settings(values: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        UnlearnSettings(**values)


def test_presets() -> None:
    assert UnlearnSettings.preset("fast") == UnlearnSettings()
    assert not UnlearnSettings().erases
    assert UnlearnSettings.preset("deep", threshold=3.0) == UnlearnSettings(erase="auto", threshold=3.0)
    with pytest.raises(SettingsError, match="preset must be one of fast, deep; got 'deeper'"):
        UnlearnSettings.preset("deeper")
