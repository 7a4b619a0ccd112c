"""`flwr run` of a project on the legacy API: `server_fn`, `FedAvgM`, `NumPyClient`, with the two lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_unlearn.run_store import RunStore
from simulations.local_flower import LocalFlower

APP = Path(__file__).parent / "legacy_project"


@pytest.mark.e2e
@pytest.mark.slow
def test_a_legacy_project_forgets(tmp_path: Path) -> None:
    with LocalFlower(3, quiet=True) as flower:
        flower.run(APP, {"out-dir": str(tmp_path)})
    seen = {int(r): v for r, v in json.loads((tmp_path / "accuracies.json").read_text()).items()}
    assert sorted(seen) == list(range(9))
    assert seen[6][0] > 0.7
    assert seen[7][0] == seen[8][0] == 0.0
    assert seen[8][1] > seen[6][1] - 0.05
    with RunStore(tmp_path / "store", read_only=True) as store:
        (operation,) = store.operations.all()
        assert operation.request["classes"] == [3]
        assert operation.request["holders"] == ["0", "1", "2"]
        assert store.operations.outstanding() == {}
