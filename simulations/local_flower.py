"""A Flower simulation engine of one's own: started for a script, used for its runs, stopped with it.

`flwr run` starts a SuperLink that outlives it and keeps the environment of the command that started it, so
that a later run from another environment fails or silently uses the wrong code. Here the SuperLink has its
own ``FLWR_HOME`` and ports, and what was started is stopped by process id.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("fl_unlearn.simulations")

Value = str | int | float | bool


class RunFailedError(RuntimeError):
    """A run did not end with the status ``finished:completed``."""


class LocalFlower:
    """Context manager around a managed local SuperLink.

    Args:
        num_supernodes: How many clients a run simulates.
        cpus_per_client: CPU cores that one client's turn takes; 1 runs as many at once as there are cores.
        quiet: Keep what runs print to the log file instead of showing it.
    """

    def __init__(self, num_supernodes: int = 10, cpus_per_client: int = 1, *, quiet: bool = False) -> None:
        self.num_supernodes, self.cpus_per_client, self.quiet = num_supernodes, cpus_per_client, quiet
        self.patience = 30.0  # seconds until the status of a run whose stream ended must be final
        self.home = Path(tempfile.mkdtemp(prefix="fl-unlearn-flwr-"))
        self.flwr = find_tool("flwr")
        http_port, control_port = free_ports(2)
        self.env = {
            **environment(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http_port),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None:
            shutil.rmtree(self.home, ignore_errors=True)
        else:
            log.error("the SuperLink's log is kept in %s", self.home)

    def run(self, app: Path, config: Mapping[str, Value] | Path, timeout: float = 1800) -> None:
        """Run an app to its end.

        Args:
            app: The app's folder.
            config: Run-config keys to override, or a TOML file of them.
            timeout: Seconds until the run is given up.

        Raises:
            RunFailedError: If it did not complete; `flwr run` itself exits 0 even then.
        """
        before = self._runs()
        command = [
            self.flwr,
            "run",
            str(app),
            "--stream",
            "--federation-config",
            f"num-supernodes={self.num_supernodes} client-resources-num-cpus={self.cpus_per_client}",
        ]
        if isinstance(config, Path):
            command += ["--run-config", str(config)]
        elif config:
            command += ["--run-config", run_config(config)]
        output = self.home / "run.log"
        try:
            with open(output, "w") as sink:
                subprocess.run(
                    command,
                    env=self.env,
                    timeout=timeout,
                    check=False,
                    stdout=sink if self.quiet else None,
                    stderr=subprocess.STDOUT if self.quiet else None,
                )
        except subprocess.TimeoutExpired as e:
            raise RunFailedError(f"the run of {app} was not over after {timeout:g} s") from e
        new = {r: s for r, s in self._wait_for_end(before).items() if r not in before}
        if set(new.values()) != {"finished:completed"}:
            shown = output.read_text()[-4000:] if self.quiet else ""
            raise RunFailedError(f"the run of {app} ended as {new or 'nothing'}; see above\n{shown}")

    def stop(self) -> None:
        """Stop the SuperLink and everything it started; a run that is still going ends with it."""
        started = self._processes()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in started:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, sign)
            deadline = time.monotonic() + 10
            while (started := [p for p in started if _runs(p)]) and time.monotonic() < deadline:
                time.sleep(0.2)

    def _processes(self) -> list[int]:
        """The SuperLink, known by this ``FLWR_HOME`` in its command line, and all processes below it.

        ``ww``: a terminal's width, which an environment may claim, must not cut the lines.
        """
        listing = subprocess.run(
            ["ps", "-axww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        found: list[int] = []
        rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
        for pid, parent, arguments in ((int(r[0]), int(r[1]), r[2]) for r in rows if len(r) == 3):
            own = "flower-superlink" in arguments and str(self.home) in arguments
            # Parents come before children in the listing unless process ids wrapped around.
            if own or parent in found:
                found.append(pid)
        return found

    def _runs(self) -> dict[str, str]:
        """Status by run id; empty while no SuperLink is up."""
        if not self._processes():
            return {}
        done = subprocess.run(
            [self.flwr, "ls", "--format", "json"],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            runs: list[dict[str, Any]] = json.loads(done.stdout).get("runs", [])
        except ValueError:
            log.warning("`flwr ls` gave no JSON: %s", (done.stdout + done.stderr)[-500:])
            return {}
        return {str(r["run-id"]): str(r["status"]) for r in runs}

    def _wait_for_end(self, before: Mapping[str, str]) -> dict[str, str]:
        """The stream can end a moment before the run's status is final."""
        deadline = time.monotonic() + self.patience
        while True:
            runs = self._runs()
            new = [s for r, s in runs.items() if r not in before]
            if (new and all(s.startswith("finished") for s in new)) or time.monotonic() > deadline:
                return runs
            time.sleep(0.5)


def _runs(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")


def find_tool(name: str) -> str:
    """The path of one of Flower's commands, of this environment first.

    Raises:
        RunFailedError: If it is not installed.
    """
    if (found := shutil.which(name, path=_search_path())) is None:
        raise RunFailedError(f"the command `{name}` was not found; install with: pip install -e '.[sim]'")
    return found


def environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process whose files lie in ``home``."""
    return {
        **os.environ,
        "PATH": _search_path(),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _search_path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


def run_config(config: Mapping[str, Value]) -> str:
    """Run-config keys as ``flwr run --run-config`` takes them."""
    return " ".join(f"{k}={_toml(v)}" for k, v in config.items())


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else str(value)
