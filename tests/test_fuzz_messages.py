"""Fuzzing of messages and files: a few hundred inputs each, and the judgements themselves."""

from __future__ import annotations

import warnings
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fl_unlearn.flower import records, statistics
from fl_unlearn.flower.ask_fisher import ask_fisher
from fl_unlearn.tensor_file import decode, encode
from fl_unlearn.types import AnswerError, CorruptCheckpointError
from simulations.fuzz import answers, arrays, exchange, files, message_changes
from simulations.fuzz.__main__ import TARGETS, fuzz
from simulations.fuzz.contract import Case

FEW = {"answers": 150, "questions": 100, "updates": 300, "checkpoints": 300}


@pytest.mark.parametrize("name", FEW)
def test_nothing_crashes_and_nothing_wrong_is_accepted(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = fuzz(TARGETS[name](), FEW[name], seed=1)
    assert counts.plain()["kept"] == []
    assert counts.total == FEW[name]
    assert {"accepted", "refused"} == set(counts.outcomes)
    sound = "as sent" if name in ("answers", "questions") else "as written"
    assert counts.accepted[sound] == counts.tried[sound] > 0


def test_a_pickled_array_is_never_unpickled() -> None:
    """The trap works where pickles are read, and is not sprung where the library reads."""
    import pickle

    pickle.loads(pickle.dumps(arrays.Trap()))
    assert arrays.UNPICKLED.pop() == "unpickled"
    sound = Array(torch.ones(3).numpy())
    for seed in range(20):
        with pytest.raises(AnswerError):
            records.tensor_of("x", arrays.CHANGES["array: pickled"](Random(seed), sound))
    assert arrays.UNPICKLED == []


@pytest.mark.parametrize("shape", arrays.HUGE, ids=str)
def test_a_huge_shape_allocates_nothing(shape: tuple[int, ...]) -> None:
    data = arrays.header(repr(shape)) + bytes(64)
    for declared in (shape, (16,)):
        array = Array(dtype="float32", shape=declared, stype="numpy.ndarray", data=data)

        def read(array: Array = array) -> Any:
            with pytest.raises(AnswerError, match="cannot be read"):
                records.tensor_of("x", array)

        files.within(1_000_000, read)


def test_arrays_of_all_plain_types_are_read_as_they_were() -> None:
    for tensor in (
        torch.tensor(3.0),
        torch.zeros(0, 3),
        torch.randn(2, 3, 4, dtype=torch.float64),
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        torch.randn(3).half(),
    ):
        found = records.tensor_of("x", Array(tensor.numpy()))
        assert found.dtype == tensor.dtype
        torch.testing.assert_close(found, tensor, rtol=0, atol=0)
    columns = torch.arange(24.0).reshape(2, 3, 4)
    turned = records.tensor_of(
        "x", arrays.CHANGES["array: column by column"](Random(0), Array(columns.numpy()))
    )
    torch.testing.assert_close(turned, columns, rtol=0, atol=0)
    assert turned.is_contiguous()
    turned.add_(1)  # it is the reader's own


def test_changes_leave_the_original_alone() -> None:
    content = RecordDict(
        {records.HEAD: records.head(labels=[1, 2]), "a": ArrayRecord([torch.ones(2).numpy()])}
    )
    before = repr(content)
    for seed in range(300):
        message_changes.changed(Random(seed), content)
    assert repr(content) == before


def test_what_is_wrong_is_told() -> None:
    """Judgements of results that must not be: were one to come of an answer, the fuzzing would say so."""
    wrong = (
        {"numbers": [[1.0, float("nan")]], "counts": [(True, 3)], "names": ["0"]},
        {"numbers": [-1.0], "counts": [], "names": []},
        {"numbers": [], "counts": [(True, 10**6)], "names": ["0"]},
        {"numbers": [], "shares": [1.5]},
        {"names": ["0", "0"], "known": True},
        {"names": ["9"], "known": False},
        {1: "node-3"},
        {1: "a", 2: "a"},
    )
    assert not any(answers._sound(result) for result in wrong)
    assert answers._sound({"numbers": [0.0, 2.0], "counts": [(True, 12)], "names": ["0", "1"]})


def test_an_accepted_change_for_the_worse_is_a_wrong_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    target = answers.Answers()
    own = target.genuine.answers[records.FISHER, answers.BAD]
    bad = message_changes.copied(own)
    name = next(iter(bad.array_records[records.FISHER_ARRAYS]))
    array = bad.array_records[records.FISHER_ARRAYS][name]
    values = torch.from_numpy(arrays.values_of(array).copy())
    values[0] = -1.0
    bad.array_records[records.FISHER_ARRAYS][name] = Array(values.numpy())
    case = Case("value moved", b"", {"action": records.FISHER, "content": bad})
    assert target.judge(case).outcome == "refused"
    worse = {"numbers": {"merged/head.weight": [[-1.0]]}, "counts": [(True, 12)], "names": ["0"]}
    monkeypatch.setattr(target, "_run", lambda action, content: worse)  # as if it had been taken in
    assert target.judge(case).fault == "wrong acceptance"


def test_a_shape_that_is_no_number_is_refused_in_words() -> None:
    """Found by fuzzing: JSON's Infinity in the header of a checkpoint."""
    fields, body = files.parts(encode({"a": torch.ones(2)}))
    fields["a"]["shape"] = [float("inf")]
    with pytest.raises(CorruptCheckpointError, match="infinity"):
        decode(files.joined(fields, body), "a file")


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_one_that_names_another_number_of_classes_does_not_silence_the_others(first: bool) -> None:
    """Found by fuzzing: what came first was the measure of what came later."""
    target = answers.Answers()
    odd = message_changes.copied(target.genuine.answers[records.FISHER, answers.BAD])
    odd.config_records[records.HEAD]["num-classes"] = 4
    liar = exchange.NODES[0] if first else exchange.NODES[-1]
    odd.config_records[records.HEAD]["client"] = str(liar - 1)

    def answer(action: str, node: int, question: RecordDict) -> RecordDict:
        return odd if node == liar else target.genuine(action, node, question)

    panel = exchange.panel(answer)
    found = ask_fisher(panel, target.state)
    assert set(found.counts) == {str(n - 1) for n in exchange.NODES if n != liar}
    assert found.num_classes == exchange.CLASSES
    assert list(panel.failed) == [str(liar - 1)]


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8", ">f4", "<c8", "<f16", "<M8[s]", "V4", "|S4", "<U3"])
def test_arrays_of_types_that_torch_cannot_compute_with_are_refused(dtype: str) -> None:
    """Found by fuzzing: statistics of unsigned integers ended the request."""
    data = arrays.npy(np.zeros(3, np.dtype(dtype)))
    with pytest.raises(AnswerError, match="plain numbers"):
        records.tensor_of("x", Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data))


def test_statistics_are_float64() -> None:
    target = answers.Answers()
    odd = message_changes.copied(target.genuine.answers[records.STATISTICS, answers.BAD])
    values = odd.array_records[statistics.ARRAYS]
    values["0/second"] = Array(arrays.values_of(values["0/second"]).astype(np.uint8))
    case = Case("array: another type", b"", {"action": records.STATISTICS, "content": odd})
    verdict = target.judge(case)
    assert (verdict.outcome, verdict.fault) == ("refused", None)
