"""Models of 50 and 200 MB on the deployment engine: what a request takes."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from deploying import telling
from test_deploy_return import LARGE

from fl_unlearn.run_store import RunStore
from simulations.deploy.demo import read_ledger
from simulations.deploy.engine import Deployment
from simulations.deploy.memory import PeakMemory
from simulations.deploy.transcript import Follower

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def deployment():
    with Deployment(2) as running:
        yield running


@pytest.mark.parametrize("megabytes", [1, 50, 200])
def test_a_large_model_is_trained_and_forgets(deployment: Deployment, tmp_path: Path, megabytes: int) -> None:
    store, copies = tmp_path / "store", tmp_path / "copies"
    config = {"megabytes": megabytes, "out-dir": str(store), "copies": str(copies)}
    with telling(deployment, f"model-of-{megabytes}-MB", tmp_path) as tell, PeakMemory(deployment) as memory:
        Follower(deployment.submit(LARGE, config), tell).finish(3000.0)
        tell("peak memory: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in sorted(memory.peak.items())))
        ledger = read_ledger(store, tell)
    assert ledger["operations"][0]["outstanding"] == []
    with RunStore(store) as opened:
        operation = opened.operations.all()[0]
        newest = opened.load("r0002-global")
        receipts = opened.runs.requests.receipts(1)
    size = sum(t.numel() * t.element_size() for t in newest.state.values())
    assert size == pytest.approx(megabytes * 1e6, rel=0.02)
    assert operation.client_update in newest.applied
    assert [r.partition(":")[0] for r in sorted(receipts)] == ["0", "1"]
    for client, receipt in zip("01", sorted(receipts), strict=True):
        told = json.loads(receipt.partition(": ")[2])
        after = sha256((copies / f"client-{client}.safetensors").read_bytes()).hexdigest()
        assert (told["status"], told["after"]) == ("applied", after)
        assert told["before"] != after
