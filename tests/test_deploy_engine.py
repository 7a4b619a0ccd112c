"""The deployment demonstration, plain and with TLS and keys; who is refused; that no process is left."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from deploying import telling

from simulations.deploy.engine import Deployment
from simulations.deploy.keys import make_node_key
from simulations.local_flower import RunFailedError, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(folder: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "simulations.deploy",
        "--json",
        "--keep-logs",
        "--out",
        str(folder),
        *options,
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the demonstration; an interrupted test lets it stop what it started, which a SIGKILL would not."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name a folder."""
    listing = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(folder) in line and "pytest" not in line]


@pytest.mark.parametrize("options", [[], ["--insecure"]], ids=["tls", "insecure"])
def test_the_demonstration(tmp_path: Path, options: list[str]) -> None:
    done = run(command(tmp_path, *options))
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    folder = Path(outcome["folder"])
    if kept := os.environ.get("FL_UNLEARN_TRANSCRIPTS"):
        name = "demonstration-insecure.txt" if options else "demonstration-tls.txt"
        shutil.copy(folder / "transcript.txt", Path(kept) / name)
    assert outcome["problems"] == []
    assert outcome["report"]["outcome"] == "committed"
    assert outcome["report"]["final"]["forget_accuracy_after"] == 0.0
    assert outcome["report"]["clients"]["answered"] == ["0", "1", "2"]
    assert outcome["ledger"]["operations"][0]["outstanding"] == []
    assert (folder / "transcript.txt").read_text() in done.stderr
    assert processes_of(tmp_path) == []
    superlink = (folder / "deployment" / "logs" / "superlink.log").read_text()
    assert ("https://127.0.0.1" in superlink) == (not options)


def test_a_request_that_cannot_be_served_is_a_failure(tmp_path: Path) -> None:
    options = ["--insecure", "--supernodes", "2", "--rounds", "1", "--forget", "12"]
    done = run(command(tmp_path, *options))
    assert done.returncode == 1
    assert "unknown class 12" in " ".join(json.loads(done.stdout)["problems"])
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process(tmp_path: Path, sign: signal.Signals) -> None:
    started = subprocess.Popen(
        command(tmp_path, "--insecure", "--supernodes", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts something in the background may have it ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not any("flwr-serverapp" in line for line in own_processes(started.pid)):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    started.send_signal(sign)
    time.sleep(1.0)
    started.send_signal(sign)  # people press it twice
    output, errors = started.communicate(timeout=120)
    assert (started.returncode, output) == (130, "")
    assert "all processes are stopped, none is left" in errors
    assert processes_of(tmp_path) == []


def own_processes(pid: int) -> list[str]:
    """Command lines of the processes below one."""
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows, found = [line.split(None, 2) for line in listing.stdout.splitlines()], {str(pid)}
    for _ in rows:
        found |= {r[0] for r in rows if r[1] in found}
    return [r[2] for r in rows if r[0] in found]


def test_a_supernode_without_a_registered_key_is_refused(tmp_path: Path) -> None:
    with Deployment(2) as deployment, telling(deployment, "unregistered-key", tmp_path) as tell:
        key = deployment.home / "keys" / "stranger"
        make_node_key(key)
        stranger = dataclasses.replace(
            deployment.nodes[0], number=2, port=free_ports(1)[0], key=key, node_id=0
        )
        with pytest.raises(RunFailedError, match="Failed to activate SuperNode") as refused:
            deployment.start_node(stranger, register=False)
        tell(str(refused.value))
        plain = dataclasses.replace(stranger, number=3, port=free_ports(1)[0], key=None)
        with pytest.raises(RunFailedError) as without:
            deployment.start_node(plain)
        tell(str(without.value))
        states = deployment.states()
        tell(f"the SuperLink's SuperNodes: {states}")
        assert states == dict.fromkeys((n.node_id for n in deployment.nodes), "online")
        deployment.start_node(stranger)
        assert deployment.states()[stranger.node_id] == "online", "with its key registered, it is let in"
