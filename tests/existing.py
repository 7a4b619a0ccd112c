"""The projects in simulations/existing, before and after: their files, their diffs, their modules."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from flwr.app import Context, RecordDict
from grid import LocalGrid

ROOT = Path(__file__).parents[1]
EXISTING = ROOT / "simulations" / "existing"
PROJECTS = ("pytorch", "client_fn")
NODES = 2  # so that the order of arrival does not matter to a floating-point sum
FORGET = 3

State = dict[str, torch.Tensor]


def app(project: str, when: str) -> Path:
    return EXISTING / project / when


def files(folder: Path) -> dict[str, str]:
    """Path below a project's folder to content."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_text() for p in found}


def changes(project: str) -> dict[str, list[str]]:
    """The lines of each changed file's diff, without context."""
    before, after = files(app(project, "before")), files(app(project, "after"))
    assert list(before) == list(after), "no file comes or goes"
    out = {}
    for name in before:
        lines = difflib.unified_diff(before[name].splitlines(), after[name].splitlines(), n=0, lineterm="")
        if changed := [line for line in lines if line[:2] not in ("--", "++", "@@")]:
            out[name] = changed
    return out


def count(lines: list[str]) -> tuple[int, int]:
    """How many lines came and went."""
    return sum(line[0] == "+" for line in lines), sum(line[0] == "-" for line in lines)


@contextmanager
def modules(project: str, when: str) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """The app's server_app, client_app and task; before and after have the same names, so one at a time."""
    folder, package = str(app(project, when)), f"existing_{project}"
    sys.path.insert(0, folder)
    try:
        yield tuple(importlib.import_module(f"{package}.{m}") for m in ("server_app", "client_app", "task"))  # type: ignore[misc]
    finally:
        sys.path.remove(folder)
        for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
            del sys.modules[name]
        importlib.invalidate_caches()


def run(project: str, when: str, tamper: Any = None, **config: Any) -> dict[int, int]:
    """Run an app in this process; returns per label how many test pictures the final model gets right."""
    defaults = {"fraction-evaluate": 1.0, "local-epochs": 1, "learning-rate": 0.1, "batch-size": 32}
    config = {**defaults, **{k.replace("_", "-"): v for k, v in config.items()}}
    with modules(project, when) as (server, client, _):
        grid = LocalGrid(dict.fromkeys(range(100, 100 + NODES), client.app), tamper, **config)
        server.app(grid, Context(1, 0, {}, RecordDict(), config))
    return right(project, torch.load(config["final-model"], weights_only=True))


def right(project: str, state: State) -> dict[int, int]:
    """Label to how many test pictures of all clients a model gets right."""
    with modules(project, "before") as (_, _, task):
        net = task.Net()
        names = {str(i): n for i, n in enumerate(net.state_dict())}  # legacy apps send lists without names
        net.load_state_dict({names.get(n, n): t for n, t in state.items()})
        net.eval()
        hits: dict[int, int] = dict.fromkeys(range(10), 0)
        with torch.no_grad():
            for partition in range(NODES):
                for images, labels in task.load_data(partition, NODES, 64)[1]:
                    for label in labels[net(images).argmax(1) == labels].tolist():
                        hits[label] += 1
    return hits
