"""Which folders the quickstart goes on with, and what a report after a restart says of before."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("flwr_datasets")

import federation as fed
from flwr.app import ArrayRecord

from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, ForgetRequest

sys.path.insert(0, str(Path(__file__).parents[1] / "simulations" / "quickstart"))
from fl_unlearn_quickstart import outputs

CONFIG: dict[str, Any] = {
    **{"resume-from": "", "num-server-rounds": 3, "forget-classes": "3", "forget-clients": ""},
    **{"forget-after-round": 0, "threshold": "auto", "fisher-kind": "normalized", "fisher-scope": "head"},
    **{"preset": "fast", "merge-rule": "max", "reference": "shared", "timeout": 9.0},
    "measures": "",
}


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**CONFIG, "out-dir": str(folder), **{k.replace("_", "-"): v for k, v in changes.items()}}


def opened(folder: Path, **changes: Any) -> outputs.Run:
    return outputs.Run(SimpleNamespace(run_config=config(folder, **changes), run_id=1), None)  # type: ignore[arg-type]


def interrupted(folder: Path) -> None:
    with RunStore(folder) as store:
        store.record("r0000-initial", fed.build_model().state_dict(), kind="initial", round_=0)
        store.runs.begin(3, 0)


def test_an_interrupted_run_is_gone_on_with_until_it_is_complete(tmp_path: Path) -> None:
    assert not opened(tmp_path).interrupted
    with RunStore(tmp_path):
        pass
    assert opened(tmp_path).interrupted, "killed before the first round"
    interrupted(tmp_path)
    run = opened(tmp_path)
    assert (run.interrupted, run.resumed) == (True, False)
    with pytest.raises(
        ValueError, match="holds an interrupted run of 3 rounds, num-server-rounds is 4; repeat"
    ):
        opened(tmp_path, num_server_rounds=4)
    with RunStore(tmp_path) as store:
        store.runs.finish(1)
        assert opened_while_open_is_refused(tmp_path)
    assert opened(tmp_path).interrupted, "the report was not written"
    with RunStore(tmp_path) as store:
        run.complete(store)
    with pytest.raises(ValueError, match="is not empty; choose another"):
        opened(tmp_path)
    assert not opened(tmp_path, resume_from=str(tmp_path)).interrupted


def opened_while_open_is_refused(folder: Path) -> bool:
    with pytest.raises(Exception, match="is being written by another run"):
        opened(folder)
    return True


@pytest.mark.parametrize("what", ["a file", "a finished run of before"])
def test_other_folders_are_refused(what: str, tmp_path: Path) -> None:
    if what == "a file":
        (tmp_path / "notes.txt").write_text("mine")
    else:
        with RunStore(tmp_path) as store:
            store.record("r0000-initial", fed.build_model().state_dict(), kind="initial", round_=0)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match="is not empty; choose another"):
        opened(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_scores_from_before_are_those_of_this_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"r0001-global": ClassScores({3: 1}, {3: 2}, {3: 0.5})}
    monkeypatch.setattr(outputs.Run, "score", lambda self, store: scores)
    strategy, network, result = fed.trained(tmp_path, rounds=2)
    store = strategy.store
    monkeypatch.setattr(outputs, "open_folder", lambda *_: (tmp_path, False, True))
    run, request = opened(tmp_path), ForgetRequest((3,))
    assert run.recall_before(store, outputs.ForgetResult(request, strategy.settings)) == {}
    run.measure_before(store)
    served = strategy.forget(network, request, result.arrays)
    assert opened(tmp_path).recall_before(store, served) == scores
    other = strategy.forget(network, ForgetRequest((0,)), result.arrays)
    assert opened(tmp_path).recall_before(store, other) == {}, "measured before another request"
    assert opened(tmp_path).recall_before(store, served) == {}, "too long ago to be told"
    (tmp_path / outputs.BEFORE).write_text('{"request": 1}')
    assert opened(tmp_path).recall_before(store, served) == {}


def test_wall_time_of_a_run_that_died_is_not_known(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = opened(tmp_path)
    with RunStore(tmp_path) as store:
        run.note_wall_seconds(store, 5.0)
        run.interrupted = False
        run.note_wall_seconds(store, 5.0)
        assert store.umig.get_meta(outputs.WALL_SECONDS) == outputs.UNKNOWN


def test_a_yardstick_goes_on_only_if_it_is_the_same(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = opened(tmp_path)

    def begin(rounds: int) -> bool:
        store = run.yardstick_store(rounds)
        going_on = store.runs.interrupted(rounds) is not None
        if not going_on:
            assert len(store.umig) == 0
            state = ArrayRecord(fed.build_model().state_dict()).to_torch_state_dict()
            store.record("r0000-initial", state, kind="initial", round_=0)
            store.runs.finish(store.runs.begin(rounds, 0).id)
        store.close()
        return going_on

    assert [begin(3), begin(3), begin(4), begin(4)] == [False, True, False, True]
    run.interrupted = False
    assert not begin(4)
