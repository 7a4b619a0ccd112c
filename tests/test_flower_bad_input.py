"""Whatever is wrong, with a request, an answer, a store or a disk: a clear error, and all is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from federation_checks import THREE, unchanged
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fl_unlearn.flower import ForgetResult, UnlearningStrategy, records
from fl_unlearn.types import (
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    UnlearnError,
    UnlearnSettings,
)

FAST = UnlearnSettings(timeout=2.0)


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        (ForgetRequest((9,)), RequestError, r"unknown class 9: the model has the classes 0 to 3"),
        (ForgetRequest((3,), clients=("0",)), RequestError, r"no client of the clients 0 holds class 3"),
        (
            ForgetRequest((3,), clients=("77",)),
            RequestError,
            r"unknown clients \['77'\]; known: 0, 1, 2, 3, 4",
        ),
        (
            ForgetRequest((0, 1, 2, 3)),
            RequestError,
            r"nothing would be retained: the request covers every class",
        ),
    ],
    ids=["unknown class", "named client without the class", "unknown client", "every class"],
)
def test_senseless_requests(request_: ForgetRequest, error: Any, match: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    with unchanged(strategy, result.arrays, error, match):
        strategy.forget(grid, request_, result.arrays)


def test_nobody_holds_the_class(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2)
    grid.away = {101, 102}
    with unchanged(strategy, result.arrays, RequestError, "no client that answered holds class 3"):
        strategy.forget(grid, THREE, result.arrays)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"classes": ()}, "at least one class"),
        ({"classes": (-1,)}, "whole number from 0 up, got -1"),
        ({"classes": ("3",)}, "whole number from 0 up, got '3'"),
        ({"classes": (True,)}, "whole number"),
    ],
)
def test_malformed_requests(values: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        ForgetRequest(**values)
    with pytest.raises(RequestError, match="must look like '3' or '1,9', got '3;4'"):
        ForgetRequest.parse("3;4")
    assert ForgetRequest.parse("9, 1,9", "b,a,b") == ForgetRequest((1, 9), ("b", "a"))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"fisher_kind": "exact"},
            "fisher_kind must be one of empirical, normalized, true, batch; got 'exact'",
        ),
        ({"fisher_scope": " "}, "fisher_scope is empty"),
        ({"threshold": -1.0}, "a threshold must be a finite number above 0, got -1.0"),
        ({"candidates": ()}, "candidates is empty"),
        ({"candidates": (0.5, 2.0)}, "cannot share one update, got 0.5"),
        ({"dampenings": (0.1, 1.0)}, "largest first"),
        ({"dampenings": (0.0,)}, "above 0"),
        ({"reference": "own"}, "reference must be one of"),
        ({"forget_tolerance": 1.5}, "between 0 and 1"),
        ({"calibration_models": 0}, "at least 1"),
        ({"timeout": 0.0}, "above 0 seconds"),
        ({"force": True}, "force needs a fixed threshold"),
    ],
)
def test_senseless_settings(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UnlearnError, match=match):
        UnlearnSettings(**values)


# --------------------------------------------------------------------------- answers
def change_arrays(change: Callable[[str, np.ndarray], Any]) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        arrays = content.array_records[records.FISHER_ARRAYS]
        for name in list(arrays):
            out = change(name, arrays[name].numpy())
            del arrays[name]
            if isinstance(out, tuple):
                arrays[out[0]] = Array(np.asarray(out[1]))
            elif out is not None:
                arrays[name] = out if isinstance(out, Array) else Array(np.asarray(out))

    return spoil


def change_head(**values: Any) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content[records.HEAD] = ConfigRecord({**content.config_records[records.HEAD], **values})

    return spoil


FISHER_SPOILERS: dict[str, Callable[[RecordDict], None]] = {
    "NaN": change_arrays(lambda n, a: a * np.nan),
    "infinite": change_arrays(lambda n, a: a + np.inf),
    "negative": change_arrays(lambda n, a: a - 1e-3),
    "wrong names": change_arrays(lambda n, a: (n.replace("head", "tail"), a)),
    "no group": change_arrays(lambda n, a: (n.partition("/")[2], a)),
    "wrong shape": change_arrays(lambda n, a: a[:-1]),
    "transposed": change_arrays(lambda n, a: a.T if a.ndim == 2 else a[None]),
    "wrong dtype": change_arrays(lambda n, a: a.astype(np.int32)),
    "text": change_arrays(lambda n, a: np.full(a.shape, "x")),
    "not the declared shape": change_arrays(
        lambda n, a: Array("float32", a.shape, "numpy.ndarray", Array(a[:1]).data)
    ),
    "garbage bytes": change_arrays(lambda n, a: Array("float32", a.shape, "numpy.ndarray", b"garbage")),
    "pickle": change_arrays(lambda n, a: Array("object", a.shape, "numpy.ndarray", b"\x80\x04K*.")),
    "no arrays": change_arrays(lambda n, a: None),
    "one array missing": change_arrays(lambda n, a: None if n.startswith("3/head.bias") else a),
    "other kind": change_head(kind="true"),
    "other scope": change_head(scope="all"),
    "negative count": change_head(counts=[-5, -5]),
    "huge count": change_head(counts=[10**15, 10**15]),
    "counts as text": change_head(counts=["1", "2"]),
    "too few counts": change_head(counts=[1]),
    "other labels": change_head(labels=[-1, 2]),
    "other classes": change_head(**{"num-classes": 0}),
    "no name": change_head(client=""),
    "somebody's name": change_head(client="1"),
    "other protocol": change_head(protocol=99),
    "nothing at all": lambda content: [content.__delitem__(n) for n in list(content)],  # type: ignore[dict-item,return-value]
}


def spoiling(action: str, nodes: set[int], spoil: Callable[[RecordDict], None]) -> Any:
    def tamper(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == f"query.{action}" and request.metadata.dst_node_id in nodes:
            spoil(reply.content)
        return reply

    return tamper


@pytest.mark.parametrize("name", FISHER_SPOILERS)
def test_one_bad_fisher_is_left_out(name: str, tmp_path: Path) -> None:
    """Client 0 holds only retained data: without it the request is served as if it had not answered."""
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)
    grid.tamper = spoiling(records.FISHER, {103}, FISHER_SPOILERS[name])
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert len(outcome.failed) == 1
    assert set(outcome.failed) <= {"3", "node-103"}
    assert set(outcome.holders) == {"1", "2"}


@pytest.mark.parametrize("name", [n for n in FISHER_SPOILERS if n != "somebody's name"])
def test_only_bad_fishers(name: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)
    grid.tamper = spoiling(records.FISHER, set(grid.apps), FISHER_SPOILERS[name])
    with unchanged(
        strategy, result.arrays, NotEnoughAnswersError, "0 of 5 clients gave a usable answer to the Fisher"
    ):
        strategy.forget(grid, THREE, result.arrays)


SCORE_SPOILERS = {
    "more right than there are": change_head(total=[0, 0, 0]),
    "negative": change_head(correct=[-1] * 500),
    "not a number": change_head(loss=[float("nan")] * 500),
    "too short": change_head(correct=[1]),
    "no labels": change_head(labels="none"),
}


@pytest.mark.parametrize("name", SCORE_SPOILERS)
def test_bad_scores(name: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)
    grid.tamper = spoiling(records.SCORE, {103}, SCORE_SPOILERS[name])
    assert list(strategy.forget(grid, THREE, result.arrays).failed) == ["3"]
    other, grid, result = fed.trained(tmp_path / "other", rounds=2, settings=FAST)
    grid.tamper = spoiling(records.SCORE, set(grid.apps), SCORE_SPOILERS[name])
    with unchanged(
        other, result.arrays, NotEnoughAnswersError, "0 of 5 clients gave a usable answer to the scoring"
    ):
        other.forget(grid, THREE, result.arrays)


@pytest.mark.parametrize("action", [records.FISHER, records.SCORE])
@pytest.mark.parametrize("how", ["silent", "error"])
def test_no_client_answers(action: str, how: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)

    def tamper(request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type != f"query.{action}":
            return reply
        return None if how == "silent" else Message(Error(code=5, reason="gone"), reply_to=request)

    grid.tamper = tamper
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, "0 of 5 clients gave a usable answer"):
        strategy.forget(grid, THREE, result.arrays)


def test_nobody_is_connected(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=1, settings=UnlearnSettings(timeout=0.3))
    grid.away = set(grid.apps)
    with unchanged(
        strategy, result.arrays, NotEnoughAnswersError, "0 clients were connected after 0.3 s, 1 are"
    ):
        strategy.forget(grid, THREE, result.arrays)


def test_too_few_answer(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=UnlearnSettings(min_answers=0.9))
    grid.tamper = spoiling(records.FISHER, {103}, FISHER_SPOILERS["NaN"])
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, "4 of 5 .* 90% are needed.*Reasons: 3: "):
        strategy.forget(grid, THREE, result.arrays)


def test_projects_without_the_plugin_say_so(tmp_path: Path) -> None:
    strategy, _, result = fed.trained(tmp_path, rounds=1, settings=FAST)
    plain = fed.grid(make=fed.plain_app)
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, "No query function registered"):
        strategy.forget(plain, THREE, result.arrays)


@pytest.mark.parametrize("action", [records.APPLY, records.SCORE])
def test_trouble_after_the_commit_does_not_undo_it(action: str, tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)
    seen: list[str] = []

    def tamper(request: Message, reply: Message) -> Message | None:
        kind = request.metadata.message_type
        seen.append(kind)
        late = kind == f"query.{action}" and "query.unlearn_apply" in seen
        return None if late else reply

    grid.tamper = tamper
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert fed.accuracy(result.arrays.to_torch_state_dict(), 3) == 0.0
    if action == records.APPLY:
        assert outcome.outstanding == ("0", "1", "2", "3", "4")
    else:
        assert outcome.after is None
        assert "verifying it failed" in outcome.message


def test_a_false_receipt_does_not_settle(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path, rounds=2, settings=FAST)
    grid.tamper = spoiling(records.APPLY, {104}, change_head(digest="0" * 64))
    assert strategy.forget(grid, THREE, result.arrays).outstanding == ("4",)


def test_a_bad_request_does_not_stop_the_training(tmp_path: Path) -> None:
    strategy = UnlearningStrategy(fed.fedavg(), store=tmp_path)
    strategy.submit(ForgetRequest((9,)), after_round=1)
    result = strategy.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=3)
    assert len(result.train_metrics_clientapp) == 3
    assert strategy.results[0] == ForgetResult(
        ForgetRequest((9,)),
        strategy.settings,
        message="failed: RequestError: unknown class 9: the model has the classes 0 to 3",
    )
    with pytest.raises(RequestError, match="after_round counts rounds from 0 up, got -1"):
        strategy.submit(THREE, after_round=-1)
