"""Comparing a store that was opened again with what it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors
import torch

from fl_unlearn.run_store import RunStore
from fl_unlearn.types import UnlearnError
from simulations.faults.work import Expected, Model, multiplied, names_of

KINDS = (
    "lost", "corrupted", "dampened twice", "not dampened", "not decided", "left over", "ledger disagreeing",
    "stuck", "unclear error",
)  # fmt: skip
"""What can be wrong. "stuck": it does not open, does not end, or the work does not go on."""

Problems = list[tuple[str, str]]
"""Pairs of one of `KINDS` and a description."""


def problems(store: RunStore, expected: Expected) -> Problems:
    """Everything in which an open store differs from what it must be."""
    found = _records(store, expected)
    kept = store.kept()
    found += [("lost", f"{name}: the ledger has no checkpoint") for name in expected.kept.keys() - kept]
    found += [("not decided", f"{name}: still kept") for name in kept - expected.kept.keys()]
    on_disk = store.checkpoints.names()
    found += [("lost", f"{name}: there is no file") for name in kept - on_disk]
    found += [("left over", f"{name}: a file without a row") for name in on_disk - kept]
    for end in ("staged", "redo", "partial"):
        found += [("left over", path.name) for path in store.folder.rglob(f"*.{end}")]
    found += [("stuck", f"{name}: decided, and not in place") for name in store.operations.pending()]
    for name in sorted(expected.kept.keys() & kept & on_disk):
        found += _model(store, name, expected.kept[name])
    return found


def _records(store: RunStore, expected: Expected) -> Problems:
    """Nodes, operations, updates, and clients that have not confirmed them."""
    found: Problems = []
    nodes = [node.name for node in store.umig]
    wanted = [name for number in range(expected.rounds) for name in names_of(number)]
    found += [("lost", f"{name}: no node") for name in wanted if name not in nodes]
    found += [("not decided", f"{name}: a node") for name in nodes if name not in wanted]
    operations = {o.request["label"]: o for o in store.operations.all()}
    found += [("lost", f"operation {label}") for label in expected.operations.keys() - operations.keys()]
    found += [
        ("not decided", f"operation {label}") for label in operations.keys() - expected.operations.keys()
    ]
    for label in expected.operations.keys() & operations.keys():
        action = expected.operations[label]
        if operations[label].client_update != action.client_update.digest:
            found.append(("ledger disagreeing", f"operation {label}: another update for clients"))
        for digest in {action.client_update.digest, *(action.update(n).digest for n in action.names)}:
            try:
                store.update(digest)
            except UnlearnError as e:
                found.append(("lost", f"operation {label}: {e}"))
    outstanding = {
        (o.request["label"], c) for c, waiting in store.operations.outstanding().items() for o in waiting
    }
    for label, client in outstanding ^ expected.outstanding:
        found.append(("ledger disagreeing", f"operation {label}: is client {client} outstanding?"))
    return found


def _model(store: RunStore, name: str, model: Model) -> Problems:
    """One checkpoint: read as any safetensors file, and through the store."""
    path = store.checkpoints.path(name)
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            applied = json.loads(file.metadata()["fl_unlearn"])["applied"]
        checkpoint = store.load(name)
    except (UnlearnError, safetensors.SafetensorError, OSError) as e:
        return [("corrupted", f"{name}: {e}")]
    found: Problems = []
    wanted = [update.digest for update in model.updates]
    if applied != wanted:
        kind = "dampened twice" if len(set(applied)) < len(applied) else "not dampened"
        kind = "not decided" if set(applied) - set(wanted) else kind
        found.append((kind, f"{name}: had {[d[:8] for d in applied]}, not {[d[:8] for d in wanted]}"))
    if not _same(state, model.state):
        again = any(_same(state, multiplied(model.state, update)) for update in model.updates)
        found.append(("dampened twice" if again else "corrupted", f"{name}: other values"))
    info = store.info(name)
    if checkpoint.info != info or path.stat().st_size != info.size or not _same(checkpoint.state, state):
        found.append(("ledger disagreeing", f"{name}: the ledger says {info}"))
    return found


def _same(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return got.keys() == wanted.keys() and all(
        got[n].dtype == wanted[n].dtype
        and got[n].shape == wanted[n].shape
        and _bits(got[n]) == _bits(wanted[n])
        for n in wanted
    )


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().numpy().tobytes())
