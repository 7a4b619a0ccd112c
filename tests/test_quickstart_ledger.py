"""The quickstart's clients with a ledger: noted when they evaluate, used when a class is to be forgotten."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from grid import LocalGrid

from fl_unlearn.flower import records

pytest.importorskip("sklearn")
pytest.importorskip("flwr_datasets")

QUICKSTART = Path(__file__).parents[1] / "simulations" / "quickstart"
sys.path.insert(0, str(QUICKSTART))
from fl_unlearn_quickstart import client_app, task  # noqa: E402

CONFIG = tomllib.loads((QUICKSTART / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def ask(config: dict[str, object]) -> tuple[dict[str, float], RecordDict]:
    """What client 1 of 3 reports of an evaluation, and its Fisher answer after that."""
    network = LocalGrid(dict.fromkeys((1, 2, 3), client_app.app), **config)
    arrays = records.to_arrays(task.new_model(config).state_dict())
    sent = {"arrays": arrays, "config": ConfigRecord({"server-round": 1})}
    (evaluated,) = network.send_and_receive([Message(RecordDict(sent), 2, "evaluate")])
    head = records.head(kind="normalized", scope="head", head="", classes=[3], ignored=[], clients=[])
    asked = RecordDict({records.HEAD: head, records.MODEL: arrays})
    (answer,) = network.send_and_receive([Message(asked, 2, f"query.{records.FISHER}")])
    return dict(evaluated.content["metrics"]), answer.content


def test_the_ledger_changes_where_the_answer_comes_from_and_nothing_else(tmp_path: Path) -> None:
    without, computed = ask(CONFIG)
    noted, kept = ask({**CONFIG, "ledger": str(tmp_path)})
    assert not records.from_ledger(computed)
    assert records.from_ledger(kept)
    assert computed[records.HEAD]["counts"] == kept[records.HEAD]["counts"]
    for name, array in computed[records.FISHER_ARRAYS].items():
        other = kept[records.FISHER_ARRAYS][name]
        pair = (torch.from_numpy(a.numpy()) for a in (array, other))
        torch.testing.assert_close(*pair, rtol=1e-5, atol=0.0)
    assert [p.parent.name for p in tmp_path.rglob("*.fisher")] == ["client-1"]
    assert {n: noted[n] for n in without} == without
    assert noted.keys() - without.keys() == {"fit-loss", "fit-accuracy"}
    model = task.new_model(CONFIG)
    training, _ = task.load_client_data(1, 3, CONFIG)
    loss, accuracy = task.evaluate(model, training, "cpu")
    assert noted["fit-loss"] == pytest.approx(loss, rel=1e-5)
    assert noted["fit-accuracy"] == pytest.approx(accuracy)


def test_data_shared_out_otherwise_is_not_answered_for(tmp_path: Path) -> None:
    config = {**CONFIG, "ledger": str(tmp_path)}
    ask(config)
    for alpha, holds in ((CONFIG["alpha"], True), (2.0, False)):
        network = LocalGrid(dict.fromkeys((1, 2, 3), client_app.app), **{**config, "alpha": alpha})
        ledger = client_app.open_ledger(network.contexts[2])
        assert ledger is not None
        assert (ledger.get(task.new_model(CONFIG)) is not None) == holds
