"""Clients and servers that come back or come late, on the deployment engine."""

from __future__ import annotations

import re
import signal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from deploying import REQUEST, TRAINING, report, telling

from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_store import RunStore
from simulations.deploy.demo import APP, read_ledger
from simulations.deploy.engine import Deployment
from simulations.deploy.transcript import Follower

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LARGE = APP.parent / "deploy" / "large"
COMMITTED = r"(?m)^asking 3 clients: unlearn_apply[\s\S]*^committed "


def received(deployment: Deployment, number: int) -> list[str]:
    """The kinds of the messages that a SuperNode has received since its start, in order."""
    process = deployment.nodes[number].process
    assert process is not None
    return re.findall(r"Receiving: (\S+) message", process.text())


@pytest.mark.parametrize("insecure", [False, True], ids=["registered-key", "partition-id"])
def test_a_client_away_during_the_commit_gets_the_update_before_it_trains_again(
    tmp_path: Path, insecure: bool
) -> None:
    name = f"away-during-the-commit-{'partition-id' if insecure else 'registered-key'}"
    copies, store = tmp_path / "copies", tmp_path / "store"
    with Deployment(3, insecure=insecure) as deployment, telling(deployment, name, tmp_path) as tell:
        config = {"megabytes": 1, "num-server-rounds": 3, "forget-after-round": 2}
        run = deployment.submit(LARGE, {**config, "copies": str(copies), "out-dir": str(store)})
        follower = Follower(run, tell)
        follower.until("asking 3 clients: unlearn_score")
        copy = copies / "client-2.safetensors"
        before = sha256(copy.read_bytes()).hexdigest()
        victim = deployment.nodes[2]
        node_id = victim.node_id
        deployment.stop_node(victim)
        follower.until(COMMITTED)
        assert read_ledger(store, tell)["operations"][0]["outstanding"] == ["2"]
        deployment.start_node(victim)
        assert (victim.node_id == node_id) is not insecure
        follower.finish()
        kinds = received(deployment, 2)
        tell(f"SuperNode 2 received since its start: {', '.join(kinds)}")
        ledger = read_ledger(store, tell)
        with RunStore(store) as opened:
            receipts = [r for r in opened.runs.requests.receipts(1) if r.startswith("2: ")]
        tell(f"its receipt: {receipts}")
    assert kinds.index("query.unlearn_apply") < kinds.index("train")
    assert kinds.count("query.unlearn_apply") == 1
    assert ledger["operations"][0]["outstanding"] == []
    assert len(receipts) == 1
    assert before in receipts[0], "the copy that was dampened is the one from before it left"
    assert '"status": "applied"' in receipts[0]


@pytest.fixture(scope="module")
def deployment():
    with Deployment(3) as running:
        yield running


def test_a_late_joiner_trains_without_what_was_forgotten(deployment: Deployment, tmp_path: Path) -> None:
    store, late = tmp_path / "store", deployment.nodes[2]
    deployment.stop_node(late)
    with telling(deployment, "late-joiner", tmp_path) as tell:
        config = {**TRAINING, "num-server-rounds": 6, "forget-after-round": 2, "forget-classes": "3"}
        follower = Follower(deployment.submit(APP, {**config, "out-dir": str(store)}), tell)
        follower.until("staged 2 checkpoints")
        deployment.start_node(late)
        follower.finish()
        kinds = received(deployment, 2)
        tell(f"SuperNode 2 received: {', '.join(kinds)}")
        ledger = read_ledger(store, tell)
    made = report(store)
    assert kinds[0] == "query.unlearn_identity"
    assert "train" in kinds
    assert ledger["operations"][0]["outstanding"] == []
    assert [m["forget_accuracy_after"] for m in made["models"] if m["kind"] == "aggregate"] == [0.0] * 6
    with RunStore(store) as opened:
        trained = [n for n in opened.umig.nodes(kind=NodeKind.CLIENT_UPDATE) if n.owner == "2"]
    assert trained
    assert {n.examples for n in trained} == {examples_without(config, 2, 3, 3)}


def examples_without(config: dict[str, Any], client: int, clients: int, label: int) -> int:
    """How many training pictures a client of the quickstart has that show something else."""
    import sys
    import tomllib

    sys.path.insert(0, str(APP))
    try:
        from fl_unlearn_quickstart import task
    finally:
        sys.path.remove(str(APP))
    plain = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    training, _ = task.load_client_data(client, clients, {**plain, **config})
    return sum(int((labels != label).sum()) for _, labels in training)


def test_the_superlink_restarts_between_training_and_request(deployment: Deployment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with telling(deployment, "superlink-restart", tmp_path) as tell:
        for node in deployment.nodes:
            if deployment.states()[node.node_id] != "online":
                deployment.start_node(node)
        Follower(
            deployment.submit(APP, {**TRAINING, "forget-classes": "", "out-dir": str(store)}), tell
        ).finish()
        deployment.stop_superlink(signal.SIGKILL)
        deployment.start_superlink()
        deployment.wait_until(dict.fromkeys((n.node_id for n in deployment.nodes), "online"))
        Follower(deployment.submit(APP, {**REQUEST, "resume-from": str(store)}), tell).finish()
        ledger = read_ledger(store, tell)
    made = report(store)
    assert made["outcome"] == "committed"
    assert made["final"]["forget_accuracy_after"] == 0.0
    assert made["clients"]["answered"] == ["0", "1", "2"]
    assert ledger["operations"][0]["outstanding"] == []
