"""The wire format: what is written comes back, and nonsense is refused with one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import runs
import torch
from cases_records import ARRAY_CHANGES, ARRAYS, BAD_BYTES, CHANGES, JSON, UPDATE_CHANGES, UPDATE_KEYS
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.fisher import FisherSums
from fl_unlearn.flower import records
from fl_unlearn.types import (
    REST,
    AnswerError,
    ClassScores,
    ModelMismatchError,
    TensorSpec,
    UnlearnError,
    UpdateError,
)

STATE = {
    "z": torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
    "half": torch.tensor([0.5, -2.0]).half(),
    "double": torch.tensor([1 / 3, float("nan")], dtype=torch.float64),
    "scalar": torch.tensor(-0.0),
    "count": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "bool": torch.tensor([[True, False]]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}
MODEL = {"fc.weight": TensorSpec((2, 3), "float32"), "fc.bias": TensorSpec((2,), "float32")}
SCORES = [
    [ClassScores({0: m + c, 5: 0}, {0: 9, 5: 3}, {0: 0.25 * c, 5: 1e-9 + m}) for c in range(3)]
    for m in range(2)
]


def over_the_wire(content: RecordDict) -> RecordDict:
    """Flower's own way to bytes and back."""
    out = RecordDict()
    for name, record in content.items():
        parents = {k: type(c).inflate(c.deflate(), c.children) for k, c in (record.children or {}).items()}
        out[name] = type(record).inflate(record.deflate(), parents or None)
    return out


def refused_or(read: Callable[[], Any], error: type[UnlearnError]) -> Any:
    try:
        return read()
    except error as e:
        if type(e) is not error or not str(e):
            raise RuntimeError(f"{e!r} says too little") from e
        return None


# --------------------------------------------------------------------------- round trips
def test_states_round_trip() -> None:
    content = over_the_wire(RecordDict({records.MODEL: records.to_arrays(STATE)}))
    arrays = records.read_model(content)
    got = records.to_state(arrays)
    assert list(got) == list(STATE)
    for name, tensor in STATE.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        torch.testing.assert_close(got[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
        got[name].zero_()  # writable, and no view of the message
    torch.testing.assert_close(records.to_state(arrays)["z"], STATE["z"], rtol=0, atol=0)
    assert torch.signbit(records.to_state(arrays)["scalar"])
    specs = {n: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in STATE.items()}
    assert records.signature(arrays) == specs
    assert records.to_state(ArrayRecord()) == {}


def test_updates_round_trip() -> None:
    for update in (runs.update(3), DampeningUpdate({}, 2.5, 0.1)):
        content = over_the_wire(RecordDict(records.write_update(update)))
        got = records.read_update(content)
        assert got.to_bytes() == update.to_bytes()
        assert got.digest == update.digest


def fisher(dtype: torch.dtype = torch.float64) -> FisherSums:
    g = torch.Generator().manual_seed(2)
    shapes = {n: s.shape for n, s in MODEL.items()}
    sums = {c: {n: torch.rand(s, generator=g).to(dtype) for n, s in shapes.items()} for c in (3, REST)}
    sums[0] = {n: torch.zeros(s, dtype=dtype) for n, s in shapes.items()}
    return FisherSums("normalized", "head", 5, sums, {3: 7, REST: 20, 0: 0})


def read_fisher(content: RecordDict) -> FisherSums:
    return records.read_fisher(content, kind="normalized", scope="head", groups=[0, 3, REST], model=MODEL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_fisher_sums_round_trip(dtype: torch.dtype) -> None:
    sums = fisher(dtype)
    content = over_the_wire(records.write_fisher("clinic", sums, 1.5))
    got = read_fisher(content)
    assert records.read_client(content) == "clinic"
    assert records.read_seconds(content) == 1.5
    assert (got.kind, got.scope, got.num_classes, got.counts) == ("normalized", "head", 5, sums.counts)
    for group, own in sums.sums.items():
        for name, tensor in own.items():
            assert got.sums[group][name].dtype == torch.float64
            torch.testing.assert_close(got.sums[group][name], tensor.float().double(), rtol=0, atol=0)


def test_scores_round_trip() -> None:
    content = over_the_wire(records.write_scores("clinic", SCORES, 0.5))
    assert records.read_scores(content, models=2, candidates=3) == SCORES
    assert (records.read_client(content), records.read_seconds(content)) == ("clinic", 0.5)
    for models, candidates in ((3, 2), (6, 1)):  # the same number of rows, otherwise cut
        got = records.read_scores(content, models=models, candidates=candidates)
        assert [s for row in got for s in row] == [s for row in SCORES for s in row]
    for models, candidates in ((2, 2), (7, 1), (0, 0)):
        with pytest.raises(AnswerError, match="models and classes"):
            records.read_scores(content, models=models, candidates=candidates)
    nothing = over_the_wire(records.write_scores("clinic", [[ClassScores()] * 3] * 2, 0.5))
    assert records.read_scores(nothing, models=2, candidates=3) == [[ClassScores()] * 3] * 2


def test_size_counts_what_is_sent() -> None:
    arrays = records.to_arrays({"ab": torch.zeros(1000)})
    content = RecordDict({"m": arrays, "c": ConfigRecord({"a": b"12345", "b": [1, 2], "c": "x"})})
    assert records.size_of(content) == len(arrays["ab"].data) + 2 + 5 + len("[1, 2]") + len('"x"')
    assert records.size_of(RecordDict({"c": ConfigRecord({"a": [b"12", b"\xff"], "m": [0.5]})})) > 8
    assert records.size_of(RecordDict({"m": MetricRecord({"a": 1})})) == 0


# --------------------------------------------------------------------------- heads
def test_heads() -> None:
    assert records.read_head(RecordDict({"unlearn": records.head(client="a")}))["client"] == "a"
    for other in (RecordDict(), RecordDict({"unlearn": MetricRecord({"protocol": 1})})):
        with pytest.raises(AnswerError, match="has no 'unlearn' record; is fl-unlearn attached"):
            records.read_head(other)
    for protocol in (2, "1", 0.5, [1]):
        with pytest.raises(AnswerError, match=r"speaks protocol .*, this side 1; install the same version"):
            records.read_head(RecordDict({"unlearn": ConfigRecord({"protocol": protocol})}))
    with pytest.raises(AnswerError, match=r"^no data here$"):
        records.read_client(RecordDict({"unlearn": records.head(client="a", error="no data here")}))
    for name in ("", "x" * 201, 5, b"a", ["a"]):
        with pytest.raises(AnswerError, match=r"a text of 1 to 150 printable characters"):
            records.read_client(RecordDict({"unlearn": records.head(client=name)}))
    for content in (RecordDict(), RecordDict({records.MODEL: ArrayRecord()})):
        with pytest.raises(ModelMismatchError, match=r"carries no model 'unlearn\.model'"):
            records.read_model(content)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e10, "5", b"5", [1.0]])
def test_nonsense_seconds_count_as_none(seconds: Any) -> None:
    assert records.read_seconds(RecordDict({"unlearn": records.head(seconds=seconds)})) == 0.0
    assert records.read_seconds(RecordDict()) == 0.0


# --------------------------------------------------------------------------- nonsense arrays
def arrays_of(data: bytes, shape: tuple[int, ...] = (1,), stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"a": Array("float32", shape, stype, data)})


@pytest.mark.parametrize("name", BAD_BYTES)
def test_unreadable_arrays(name: str) -> None:
    with pytest.raises(AnswerError, match="the array 'a' cannot be read: "):
        records.to_state(arrays_of(BAD_BYTES[name]))


def test_other_serialisations_are_not_read() -> None:
    good = Array(np.ones(1, np.float32)).data
    assert records.to_state(arrays_of(good))["a"].item() == 1.0
    with pytest.raises(AnswerError, match="cannot be read"):
        records.to_state(arrays_of(good, stype="pickle"))


GOOD = Array(np.arange(6, dtype=np.float32).reshape(2, 3)).data


@given(at=st.integers(0, len(GOOD) - 1), new=st.binary(min_size=1, max_size=12), cut=st.booleans())
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_arrays_are_read_or_refused(at: int, new: bytes, cut: bool) -> None:
    data = GOOD[:at] if cut else GOOD[:at] + new + GOOD[at + len(new) :]
    got = refused_or(lambda: records.to_state(arrays_of(data, (2, 3))), AnswerError)
    assert got is None or got["a"].shape == (2, 3)


# --------------------------------------------------------------------------- nonsense messages
def changed(
    content: RecordDict, key: str, head: dict[str, Any], arrays: dict[str, Array | None]
) -> RecordDict:
    content[records.HEAD] = ConfigRecord({**content.config_records[records.HEAD], **head})
    for name, array in arrays.items():
        record = content.array_records.get(key)
        if record is not None and array is not None:
            record[name] = array
        elif record is not None:
            record.pop(name, None)
    return content


@given(head=CHANGES, arrays=ARRAY_CHANGES)
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_wild_fisher_answers(head: dict[str, Any], arrays: dict[str, Array | None]) -> None:
    content = changed(records.write_fisher("clinic", fisher(), 1.0), records.FISHER_ARRAYS, head, arrays)
    got = refused_or(lambda: read_fisher(content), AnswerError)
    if got is not None:
        got.validate()
        assert set(got.sums) == {0, 3, REST}
        assert all(
            {n: tuple(t.shape) for n, t in s.items()}.items()
            <= {n: m.shape for n, m in MODEL.items()}.items()
            for s in got.sums.values()
        )
    refused_or(lambda: records.read_client(content), AnswerError)
    assert 0 <= records.read_seconds(content) < 1e9
    assert records.size_of(content) > 0


@given(head=CHANGES)
@settings(max_examples=400, deadline=None)
def test_wild_scores(head: dict[str, Any]) -> None:
    content = changed(records.write_scores("clinic", SCORES, 1.0), "", head, {})
    got = refused_or(lambda: records.read_scores(content, models=2, candidates=3), AnswerError)
    for s in [s for row in got or [] for s in row]:
        assert all(0 <= s.correct[c] <= s.total[c] <= records.MAX_COUNT for c in s.total)
        assert all(0 <= v < float("inf") for v in s.loss.values())


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 1.7e308])
def test_losses_are_finite(bad: float) -> None:
    spoilt = ConfigRecord(
        {**records.write_scores("a", SCORES, 1.0)[records.HEAD], "loss": [0.0] * 11 + [bad]}
    )
    with pytest.raises(AnswerError, match="a loss that is negative or not a finite number"):
        records.read_scores(RecordDict({records.HEAD: spoilt}), models=2, candidates=3)


HEADER = json.loads(runs.update().header())


@given(change=UPDATE_CHANGES | JSON, arrays=st.dictionaries(UPDATE_KEYS, st.none() | ARRAYS, max_size=2))
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_wild_updates(change: Any, arrays: dict[str, Array | None]) -> None:
    content = RecordDict({**records.write_update(runs.update()), records.HEAD: records.head()})
    header = {**HEADER, **change} if isinstance(change, dict) else change
    content[records.UPDATE + ".header"] = ConfigRecord({"json": json.dumps(header)})
    changed(content, records.UPDATE, {}, arrays)
    got = refused_or(lambda: records.read_update(content), UpdateError)
    if got is not None:
        assert got.selected == sum(e.factors.numel() for e in got.entries.values())
        assert len(got.digest) == 64


@pytest.mark.parametrize(
    "header", ["[" * 100_000, '{"a":' * 100_000, "", "5", "null", 5, b"x", [1], "9" * 5000]
)
def test_headers_that_no_parser_likes(header: Any) -> None:
    content = RecordDict(records.write_update(runs.update()))
    content[records.UPDATE + ".header"] = ConfigRecord({"json": header})
    refused_or(lambda: pytest.fail(str(records.read_update(content))), UpdateError)


def test_messages_without_an_update() -> None:
    for missing in (records.UPDATE, records.UPDATE + ".header"):
        content = RecordDict(records.write_update(runs.update()))
        del content[missing]
        with pytest.raises(UpdateError, match="carries no readable update"):
            records.read_update(content)
        content[missing] = MetricRecord({"json": 1})
        with pytest.raises(UpdateError, match="carries no readable update"):
            records.read_update(content)
