"""SuperNodes killed in each phase of a request, on the deployment engine with TLS and node keys."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from deploying import REQUEST, TRAINING, report, telling

from simulations.deploy.demo import APP, read_ledger
from simulations.deploy.engine import Deployment
from simulations.deploy.transcript import Follower

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FIRST_SCORE = r"asking 3 clients: unlearn_score"
SECOND_SCORE = rf"{FIRST_SCORE}[\s\S]*{FIRST_SCORE}"


@pytest.fixture(scope="module")
def deployment():
    with Deployment(3) as running:
        yield running


@pytest.fixture(scope="module")
def trained(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three clients' training, in which nothing was forgotten yet."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    deployment.run(APP, {**TRAINING, "forget-classes": "", "out-dir": str(folder)})
    return folder


@pytest.mark.parametrize(
    ("phase", "sign", "outstanding"),
    [
        ("fisher", "asking 3 clients: unlearn_fisher", ["2"]),
        ("scores", FIRST_SCORE, ["2"]),
        ("apply", "asking 3 clients: unlearn_apply", ["2"]),
        ("verification", SECOND_SCORE, []),
    ],
)
def test_the_rest_goes_on_without_a_node_that_is_killed(
    deployment: Deployment,
    trained: Path,
    tmp_path: Path,
    phase: str,
    sign: str,
    outstanding: list[str],
) -> None:
    victim, store = deployment.nodes[2], tmp_path / "store"
    with telling(deployment, f"killed-in-{phase}", tmp_path) as tell:
        if victim.process is None or not victim.process.runs:
            deployment.wait_until({victim.node_id: "offline"})
            deployment.start_node(victim)
        run = deployment.submit(APP, {**REQUEST, "resume-from": str(trained), "out-dir": str(store)})
        follower = Follower(run, tell)
        follower.until(sign)
        deployment.stop_node(victim, signal.SIGKILL)
        follower.finish()
        ledger = read_ledger(store, tell)
    made = report(store)
    assert made["outcome"] == "committed"
    assert made["final"]["forget_accuracy_after"] == 0.0
    assert ledger["operations"][0]["outstanding"] == outstanding
    assert made["clients"]["outstanding"] == outstanding
    assert made["clients"]["answered"] == ["0", "1"]
    assert any("Node Unavailable" in why for why in made["clients"]["failed"])
    assert "2 of 3 connected clients" in made["message"] or phase in ("apply", "verification")
