"""Parts of the deployment: keys, processes, and what counts as a failure. Whole ones: test_deploy_*.py."""

from __future__ import annotations

import signal
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from simulations.deploy.__main__ import main
from simulations.deploy.demo import check
from simulations.deploy.keys import make_certificates, make_node_key
from simulations.deploy.processes import Processes, undisturbed
from simulations.local_flower import RunFailedError, free_ports, run_config


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory."""
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(one, other, server_side=True),
        client.wrap_bio(other, one, server_hostname=name),
    ]
    for _ in range(10):
        for side in sides.copy():
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not sides


def test_the_certificate_holds_for_this_machine_and_no_other(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    made, other = map(make_certificates, folders)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=made.authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("127.0.0.1", "localhost"):
        handshake(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(server, client, "127.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, ssl.create_default_context(cafile=other.authority), "localhost")
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600


def test_a_node_key_is_what_flower_takes(tmp_path: Path) -> None:
    public = make_node_key(tmp_path / "node")
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o600
    private = load_ssh_private_key((tmp_path / "node").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert load_ssh_public_key(public.read_bytes()) == private.public_key()
    with pytest.raises(FileExistsError):
        make_node_key(tmp_path / "node")


# --------------------------------------------------------------------------- processes
FAMILY = "sleep 100 & setsid sleep 101 & echo ready; wait"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_process_started_is_stopped_with_it(tmp_path: Path, sign: signal.Signals) -> None:
    processes = Processes()
    started = processes.start(
        "a shell", ["sh", "-c", FAMILY], tmp_path / "log", {"PATH": "/bin:/usr/bin"}, tmp_path
    )
    started.wait_for("ready", 10)
    deadline = time.monotonic() + 10
    while len(processes.left()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    rows = processes.left()
    assert {r.command for r in rows if "sleep 10" in r.command and "echo" not in r.command} >= {
        "sleep 100",
        "sleep 101",
    }
    assert len({r.group for r in rows}) == 2, "one left the session"
    processes.stop(started, signs=(sign,))
    assert processes.left() == []


def test_orphans_of_a_process_that_died_are_found(tmp_path: Path) -> None:
    processes = Processes()
    started = processes.start(
        "a shell", ["sh", "-c", FAMILY], tmp_path / "log", {"PATH": "/bin:/usr/bin"}, tmp_path
    )
    started.wait_for("ready", 10)
    deadline = time.monotonic() + 10
    while len(processes.family(started)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    started.process.kill()
    started.process.wait()
    assert {r.command for r in processes.left()} == {"sleep 100", "sleep 101"}
    processes.stop_all()
    assert processes.left() == []


def test_what_is_waited_for_comes_or_is_missed_in_words(tmp_path: Path) -> None:
    processes, env = Processes(), {"PATH": "/bin:/usr/bin"}
    log = tmp_path / "log"
    log.write_text("number 0\n")
    one = processes.start("one", ["sh", "-c", "printf '\\033[92mnumber 17\\n'; exit 3"], log, env, tmp_path)
    assert one.wait_for(r"number (\d+)", 10)[1] == "17", "not what an earlier process wrote, and no colours"
    with pytest.raises(RunFailedError, match=r"one ended with status 3 and did not say 'more':\nnumber 17"):
        one.wait_for("more", 10)
    two = processes.start("two", ["sleep", "100"], tmp_path / "two", env, tmp_path)
    with pytest.raises(RunFailedError, match=r"two ran for 0\.2 s and did not say"):
        two.wait_for("more", 0.2)
    processes.stop_all(last=one)
    assert processes.left() == []


def test_a_second_interruption_waits_until_all_is_stopped() -> None:
    code = (
        "import os, signal\n"
        "from simulations.deploy.processes import undisturbed\n"
        "with undisturbed():\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('whole', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "whole\n"), "after the block, they count again"
    before = signal.getsignal(signal.SIGINT)
    with undisturbed():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before


def test_ports_and_run_configs() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert run_config({"a": True, "b": 'x "y"', "c": 0.5}) == 'a=true b="x \\"y\\"" c=0.5'


# --------------------------------------------------------------------------- the demonstration
def end_state() -> tuple[dict[str, Any], dict[str, Any]]:
    report = {"outcome": "committed", "message": "done", "clients": {"answered": ["0", "1"]}}
    return report, {"operations": [{"outstanding": []}], "pending": []}


def test_what_counts_as_a_failure() -> None:
    report, ledger = end_state()
    assert check(report, ledger, 2) == []
    assert check({}, ledger, 2) == ["the run completed but wrote no report"]
    assert "of 3 clients" in check(report, ledger, 3)[0]
    refused = {**report, "outcome": "refused", "message": "no candidate"}
    assert check(refused, {"operations": [], "pending": []}, 2) == [
        "the request was not committed: no candidate"
    ]
    assert "no operation" in check(report, {**ledger, "operations": []}, 2)[0]
    assert "have not confirmed" in check(report, {**ledger, "operations": [{"outstanding": ["1"]}]}, 2)[0]
    assert "not at rest" in check(report, {**ledger, "pending": ["something"]}, 2)[0]


@pytest.mark.parametrize("arguments", [["--supernodes", "1"], ["--rounds", "none"], ["--nonsense"]])
def test_bad_options_are_refused_before_anything_starts(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
