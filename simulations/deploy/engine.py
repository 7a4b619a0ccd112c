"""A SuperLink and SuperNodes on this machine, as one starts them on several, and runs of apps on them."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simulations.deploy.keys import Certificates, make_certificates, make_node_key
from simulations.deploy.processes import Processes, Started
from simulations.local_flower import RunFailedError, Value, environment, find_tool, free_ports, run_config

log = logging.getLogger("fl_unlearn.simulations")

CONNECTION = "lab"
"""Name of the connection that ``flwr`` uses, in ``config.toml`` of its FLWR_HOME."""
UP = 60.0
"""Seconds until a process that was started must be ready: importing takes some on a busy machine."""
FORGOTTEN = 100.0
"""Seconds until a SuperLink notices that a SuperNode was killed: two heartbeats are missed, 30 s apart."""


@dataclass
class SuperNode:
    """One client.

    Attributes:
        number: Its partition, from 0 up.
        port: Of its own interface.
        key: Its private key; None in an insecure deployment.
        process: While it runs.
        node_id: By which the SuperLink knows it; another at each start in an insecure deployment.
    """

    number: int
    port: int
    key: Path | None = None
    process: Started | None = None
    node_id: int = 0


class Run:
    """A run of an app, followed by a ``flwr run --stream`` of its own."""

    def __init__(self, deployment: Deployment, stream: Started) -> None:
        self.deployment, self.stream = deployment, stream
        self.id = stream.wait_for(r"Successfully started run (\d+)", UP)[1]

    def status(self) -> str:
        """What the SuperLink says of it, such as ``running`` or ``finished:completed``."""
        runs = self.deployment.flwr("ls", CONNECTION, "--format", "json")["runs"]
        return next((str(r["status"]) for r in runs if str(r["run-id"]) == self.id), "unknown")

    def finish(self, timeout: float = 900.0) -> str:
        """Wait for the end.

        Returns:
            The server's output.

        Raises:
            RunFailedError: If it did not complete; ``flwr run`` itself exits 0 even then.
        """
        deadline = time.monotonic() + timeout
        while self.stream.runs and time.monotonic() < deadline:
            time.sleep(0.2)
        late = time.monotonic() + 30.0  # the stream can end a moment before the status is final
        while (status := self.status()).partition(":")[0] != "finished" and time.monotonic() < late:
            time.sleep(1.0)
        if status != "finished:completed":
            raise RunFailedError(f"run {self.id} ended as {status!r}:\n{self.stream.text()[-4000:]}")
        return self.stream.text()


class Deployment:
    """Context manager around a SuperLink and its SuperNodes; all processes are stopped when it ends.

    Each process has an FLWR_HOME and a log of its own below ``home``, as on machines of their own.

    Args:
        supernodes: How many clients there are.
        insecure: Without TLS and without keys.
        home: Folder for keys, logs and the SuperLink's database; None: a temporary one, removed at the end
            unless something failed.
        keep: Keep a temporary ``home`` in any case.
        tell: Called with a line for each thing done.

    Attributes:
        address: Host and port of the SuperLink.
        nodes: The clients, in the order of their partitions.
        processes: All processes that were started.
    """

    def __init__(
        self,
        supernodes: int = 3,
        *,
        insecure: bool = False,
        home: Path | None = None,
        keep: bool = False,
        tell: Callable[[str], None] = log.info,
    ) -> None:
        self.insecure, self.keep, self.tell = insecure, keep or home is not None, tell
        self.home = Path(home or tempfile.mkdtemp(prefix="fl-unlearn-deploy-")).absolute()
        port, *ports = free_ports(supernodes + 1)
        self.address, self.port = f"127.0.0.1:{port}", port
        self.nodes = [SuperNode(i, p) for i, p in enumerate(ports)]
        self.processes = Processes()
        self.superlink: Started | None = None
        self.certificates: Certificates | None = None
        self._runs = 0

    # ------------------------------------------------------------------ start and stop
    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start_superlink()
            for node in self.nodes:
                self.start_node(node, wait=False)
            for node in self.nodes:
                self.wait_for_node(node)
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def close(self, *, failed: bool = False) -> None:
        """Stop everything.

        Raises:
            RunFailedError: If a process is left.
        """
        self.processes.stop_all(last=self.superlink)
        left = self.processes.left()
        if failed or left or self.keep:
            self.tell(f"keys and logs are kept in {self.home}")
        else:
            shutil.rmtree(self.home, ignore_errors=True)
        if left:
            raise RunFailedError(f"could not be stopped: {left}")
        self.tell("all processes are stopped, none is left")

    def _prepare(self) -> None:
        for name in ("keys", "cli", "logs"):
            (self.home / name).mkdir(parents=True)
        connection = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        connection += f'address = "{self.address}"\n'
        if self.insecure:
            connection += "insecure = true\n"
        else:
            self.certificates = make_certificates(self.home / "keys")
            connection += f"root-certificates = {json.dumps(str(self.certificates.authority))}\n"
            for node in self.nodes:
                node.key = self.home / "keys" / f"node-{node.number}"
                make_node_key(node.key)
            self.tell(f"made a certificate for the SuperLink and {len(self.nodes)} node keys")
        (self.home / "cli" / "config.toml").write_text(connection)

    def start_superlink(self) -> None:
        """Start the SuperLink, on the port and the database that it had before, and wait until it answers."""
        command = ["flower-superlink", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        command += ["--database", str(self.home / "superlink.db")]
        if self.certificates is None:
            command += ["--insecure"]
        else:
            c = self.certificates
            command += ["--enable-supernode-auth", "--ssl-ca-certfile", str(c.authority)]
            command += ["--ssl-certfile", str(c.certificate), "--ssl-keyfile", str(c.key)]
        self.superlink = self._start("superlink", command)
        deadline = time.monotonic() + UP
        while not self._answers():
            if not self.superlink.runs or time.monotonic() > deadline:
                raise RunFailedError(f"the SuperLink did not start:\n{self.superlink.text()[-3000:]}")
            time.sleep(0.2)
        how = "insecure" if self.insecure else "TLS, registered SuperNodes only"
        self.tell(f"SuperLink at {self.address} ({how}), process {self.superlink.pid}")

    def stop_superlink(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop the SuperLink, and runs with it."""
        assert self.superlink is not None
        self.processes.stop(self.superlink, signs=(sign, signal.SIGKILL))
        self.tell("SuperLink stopped")

    def start_node(self, node: SuperNode, *, register: bool = True, wait: bool = True) -> None:
        """Start a client; its key is registered first, if it has one that is not.

        Args:
            node: One of `nodes`, or another one.
            register: Whether to register its key.
            wait: Whether to wait until the SuperLink has taken it in.

        Raises:
            RunFailedError: If it could not be registered or, where waited for, was refused.
        """
        command = ["flower-supernode", "--superlink", self.address, "--port", str(node.port)]
        if node.key is None or self.certificates is None:
            command += ["--insecure"]
        else:
            if register and not node.node_id:
                public = f"{node.key}.pub"
                done = self.flwr("supernode", "register", public, CONNECTION, "--format", "json")
                node.node_id = int(done["node-id"])
                self.tell(f"registered the key of SuperNode {node.number}: it is node {node.node_id}")
            command += ["--root-certificates", str(self.certificates.authority)]
            command += ["--auth-supernode-private-key", str(node.key)]
        config = f"partition-id={node.number} num-partitions={len(self.nodes)}"
        node.process = self._start(f"supernode-{node.number}", [*command, "--node-config", config])
        if wait:
            self.wait_for_node(node)

    def wait_for_node(self, node: SuperNode) -> None:
        """Wait until the SuperLink has taken a client in.

        Raises:
            RunFailedError: If it does not.
        """
        assert node.process is not None
        node.node_id = int(node.process.wait_for(r"SuperNode ID: (\d+)", UP)[1])
        self.tell(f"SuperNode {node.number} is online as node {node.node_id}, process {node.process.pid}")

    def stop_node(self, node: SuperNode, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop a client: SIGTERM lets it say goodbye, SIGKILL does not."""
        assert node.process is not None
        if sign == signal.SIGTERM:
            self.processes.stop(node.process)
        else:
            self.processes.stop(node.process, signs=(sign,))
        self.tell(f"SuperNode {node.number} stopped with {sign.name}")

    def wait_until(self, wanted: Mapping[int, str], timeout: float = FORGOTTEN) -> None:
        """Wait until the SuperLink's list of SuperNodes says what it must.

        Args:
            wanted: Some of what `states` is to return. A SuperNode that was killed must be ``offline`` before
                it can come back with the same key.
            timeout: Seconds.

        Raises:
            RunFailedError: If it does not.
        """
        deadline = time.monotonic() + timeout
        while not wanted.items() <= (states := self.states()).items():
            if time.monotonic() > deadline:
                raise RunFailedError(f"after {timeout:g} s the SuperNodes are {states}, not {dict(wanted)}")
            time.sleep(2.0)

    # ------------------------------------------------------------------ what runs on it
    def states(self) -> dict[int, str]:
        """The SuperLink's list of SuperNodes: ``registered``, ``online`` or ``offline``, by node id."""
        listed = self.flwr("supernode", "list", CONNECTION, "--format", "json")["nodes"]
        return {int(n["node-id"]): str(n["status"]) for n in listed}

    def submit(self, app: Path, config: Mapping[str, Value]) -> Run:
        """Start a run of an app; nothing is waited for.

        Args:
            app: The app's folder.
            config: Run-config keys to override.
        """
        command = ["flwr", "run", str(app), CONNECTION, "--stream"]
        if config:
            command += ["--run-config", run_config(config)]
        self._runs += 1
        run = Run(self, self._start("cli", command, log_name=f"run-{self._runs}"))
        self.tell(f"run {run.id}: {shlex.join(command)}")
        return run

    def run(self, app: Path, config: Mapping[str, Value], timeout: float = 900.0) -> str:
        """Run an app to its end; returns the server's output.

        Raises:
            RunFailedError: If it did not complete.
        """
        return self.submit(app, config).finish(timeout)

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a ``flwr`` command with ``--format json`` prints.

        Raises:
            RunFailedError: If it fails.
        """
        done = subprocess.run(
            [find_tool("flwr"), *arguments],
            env=environment(self.home / "cli"),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=UP,
        )
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(done.stdout)
            if found.get("success"):
                return found
        said = (done.stdout + done.stderr)[-2000:]
        raise RunFailedError(f"`flwr {shlex.join(arguments)}` failed with status {done.returncode}:\n{said}")

    # ------------------------------------------------------------------ parts
    def _start(self, name: str, command: list[str], log_name: str | None = None) -> Started:
        home = self.home / name
        home.mkdir(exist_ok=True)
        # Several processes share this machine's cores: none may take them all.
        env = {"OMP_NUM_THREADS": "1", **environment(home)}
        sink = self.home / "logs" / f"{log_name or name}.log"
        return self.processes.start(name, [find_tool(command[0]), *command[1:]], sink, env, home)

    def _answers(self) -> bool:
        """Whether the SuperLink accepts connections, with a certificate that holds."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as plain:
            if self.certificates is None:
                return True
            context = ssl.create_default_context(cafile=self.certificates.authority)
            with context.wrap_socket(plain, server_hostname="127.0.0.1"):
                return True
        return False
