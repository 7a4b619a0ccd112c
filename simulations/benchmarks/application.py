"""Applying one update to many checkpoints of a ResNet-18, beside a plain loop and beside copying the files.

The loop is what one would write without fl-unlearn: load, multiply, save. Every timing ends with a sync of
all disks, so that what is compared has reached them. The files are in the page cache when they are read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fl_unlearn.apply import stage, usable_cores
from fl_unlearn.dampen import DampeningUpdate, Entry, apply_update
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import signature_of

CLASSES, FORGOTTEN = 10, 3
SHARE = 0.03
"""Share of the elements that the all-layers update selects, evenly spread; of the head's other rows, too."""

Say = Callable[[str], None]


def measure(models: int = 200, folder: Path | None = None, say: Say = print) -> dict[str, Any]:
    """Run it all once.

    Args:
        models: How many checkpoints, 45 MB each.
        folder: Where to work; about three times the checkpoints' size is needed. Default: a temporary one.
        say: Told about each step.

    Returns:
        Seconds and bytes written by step, and the ratios; JSON-able.

    Raises:
        SystemExit: If there is not enough room.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        state = model()
        need = 3 * models * sum(t.numel() * t.element_size() for t in state.values())
        if need > (free := shutil.disk_usage(work).free):
            raise SystemExit(f"{work} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: use --folder")
        say(f"writing {models} checkpoints")
        with RunStore(work / "store") as store:
            fill(store, state, models)
            return _compare(store, work / "plain", state, say)


def _compare(store: RunStore, plain: Path, state: dict[str, torch.Tensor], say: Say) -> dict[str, Any]:
    plain.mkdir()
    steps: dict[str, dict[str, float]] = {}
    names = sorted(store.kept())
    steps["copy"] = _step("copying the files", say, lambda: _copy(store.checkpoints.folder, plain))
    updates = {"head": head_update(state), "all": all_layers_update(state)}
    for kind, update in updates.items():
        steps[f"loop_{kind}"] = _step(f"plain loop, {kind}", say, partial(_loop, plain, update))
        steps[f"ours_{kind}"] = _step(f"fl-unlearn, {kind}", say, partial(_apply, store, names, update))
    for name in names[:: max(1, len(names) // 5)]:
        own = safetensors.torch.load_file(plain / store.checkpoints.path(name).name)
        for tensor, value in store.load(name).state.items():
            torch.testing.assert_close(value, own[tensor], rtol=0, atol=0)
    say("both ways gave the same models")
    size = sum(info.size for _, _, info in store.kept_files())
    return {
        "models": len(names),
        "bytes": size,
        "workers": usable_cores(),
        "selected": {kind: update.selected for kind, update in updates.items()},
        "steps": steps,
        "head_speedup_over_loop": steps["loop_head"]["seconds"] / steps["ours_head"]["seconds"],
        "head_share_of_bytes_written": steps["ours_head"]["bytes"] / steps["loop_head"]["bytes"],
        "all_speedup_over_loop": steps["loop_all"]["seconds"] / steps["ours_all"]["seconds"],
        "all_seconds_over_copy": steps["ours_all"]["seconds"] / steps["copy"]["seconds"],
        "copy_megabytes_a_second": size / 1e6 / steps["copy"]["seconds"],
    }


def model() -> dict[str, torch.Tensor]:
    """A ResNet-18 for ten classes."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(resnet18(num_classes=CLASSES).state_dict())


def fill(store: RunStore, state: dict[str, torch.Tensor], models: int) -> None:
    """Record an initial model and aggregates, all different."""
    parents: dict[str, float] = {}
    for number in range(models):
        one = {n: t + number if t.is_floating_point() else t for n, t in state.items()}
        name = f"r{number:04d}-global"
        store.record(name, one, kind="aggregate" if number else "initial", round_=number, parents=parents)
        parents = {name: 1.0}


def head_update(state: dict[str, torch.Tensor]) -> DampeningUpdate:
    """All of the forgotten class's row of the head, and some elements of the others."""
    chosen = _some(state["fc.weight"], seed=1)
    chosen[FORGOTTEN] = True
    return _update(state, {"fc.weight": chosen, "fc.bias": _some(state["fc.bias"], seed=2)})


def all_layers_update(state: dict[str, torch.Tensor]) -> DampeningUpdate:
    """Elements of every parameter and of BatchNorm's statistics, evenly spread."""
    floats = [n for n, t in state.items() if t.is_floating_point()]
    return _update(state, {n: _some(state[n], seed=i) for i, n in enumerate(floats)})


def _some(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) < SHARE


def _update(state: dict[str, torch.Tensor], chosen: dict[str, torch.Tensor]) -> DampeningUpdate:
    signature, entries = signature_of(state), {}
    for name, mask in chosen.items():
        if len(indices := mask.flatten().nonzero().squeeze(1)):
            entries[name] = Entry(indices.to(torch.int32), torch.full((len(indices),), 0.5), signature[name])
    return DampeningUpdate(entries, 1.0)


# --------------------------------------------------------------------------- the rivals
def _apply(store: RunStore, names: list[str], update: DampeningUpdate) -> None:
    stage(store, dict.fromkeys(names, update), update).commit({"benchmark": True})


def _loop(folder: Path, update: DampeningUpdate) -> None:
    for path in sorted(folder.iterdir()):
        state = apply_update(safetensors.torch.load_file(path), update)
        safetensors.torch.save_file(state, path)


def _copy(source: Path, target: Path) -> None:
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda path: shutil.copyfile(path, target / path.name), sorted(source.iterdir())))


# --------------------------------------------------------------------------- measuring
def _step(what: str, say: Say, work: Callable[[], None]) -> dict[str, float]:
    os.sync()
    with _measured() as figures:
        work()
        os.sync()
    say(f"{what}: {figures['seconds']:.2f} s, {figures['bytes'] / 1e6:,.1f} MB written")
    return figures


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    figures: dict[str, float] = {}
    started, before = time.perf_counter(), _written()
    yield figures
    figures["seconds"], figures["bytes"] = time.perf_counter() - started, _written() - before


def _written() -> int:
    """Bytes that this process has handed to the system to be written (Linux)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise SystemExit("/proc/self/io does not tell the bytes written; run this on Linux")
