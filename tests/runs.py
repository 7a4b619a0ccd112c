"""Small stores of runs for tests, and what must hold for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fl_unlearn.audit_verify import verify_store
from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import CheckpointStore, KeepPolicy
from fl_unlearn.tensor_file import FileInfo, decode, encode
from fl_unlearn.types import signature_of

ALL = KeepPolicy(client_updates=True)
State = dict[str, torch.Tensor]


def state(seed: int) -> State:
    """A model whose tensors are not in alphabetical order, with a counter as BatchNorm has it."""
    g = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(3, 4, generator=g),
        "a.bias": torch.randn(3, generator=g),
        "steps": torch.tensor(seed),
        "half": torch.randn(5, generator=g).half(),
        "body": torch.randn(3000, generator=g),
    }


def update(seed: int = 0, threshold: float = 0.5, wide: bool = False) -> DampeningUpdate:
    """Small enough to be made in place, or ``wide``: so much that files are rewritten."""
    g = torch.Generator().manual_seed(1000 + seed)
    own, names = state(0), ("z.weight", "half", *(("body",) if wide else ()))
    forget = {n: torch.rand(own[n].shape, generator=g) + 0.1 for n in names}
    reference = {n: torch.rand(own[n].shape, generator=g) for n in names}
    return build_update(forget, reference, threshold=threshold, dampening=0.5, signature=signature_of(own))


def write_round(store: RunStore, number: int) -> None:
    """Two client updates and their aggregate."""
    before = f"g{number - 1}"
    with store.round():
        for client in ("0", "1"):
            name = f"r{number}-{client}"
            kwargs = {"kind": "client-update", "round_": number, "parents": {before: 1.0}, "owner": client}
            store.record(name, state(10 * number + int(client)), **kwargs)  # type: ignore[arg-type]
        parents = {f"r{number}-0": 0.5, f"r{number}-1": 0.5}
        store.record(f"g{number}", state(100 + number), kind="aggregate", round_=number, parents=parents)


def filled(folder: Path, rounds: int = 2, keep: KeepPolicy = ALL) -> RunStore:
    store = RunStore(folder, keep=keep)
    store.record("g0", state(100), kind="initial", round_=0)
    for number in range(1, rounds + 1):
        write_round(store, number)
    return store


def stage(checkpoints: CheckpointStore, name: str, model: State, applied: tuple[str, ...] = ()) -> FileInfo:
    """Prepare any model as the successor of another."""
    data = encode(model, applied)
    checkpoints.stage_parts(name, [data])
    return decode(data, name).info


def contents(store: RunStore) -> dict[str, tuple[tuple[str, ...], State]]:
    """Every kept model as it is on disk, checked against the ledger."""
    loaded = {name: store.load(name) for name in sorted(store.kept())}
    return {name: (c.applied, c.state) for name, c in loaded.items()}


def assert_same(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0)


def assert_sound(store: RunStore) -> None:
    """Ledger, audit log and files agree, and nothing is left over."""
    assert store.checkpoints.names() == store.kept()
    for name in store.kept():
        found = store.load(name).info
        assert found == store.info(name)
        assert found.size == store.checkpoints.path(name).stat().st_size
    assert not [p for end in ("staged", "redo", "partial") for p in store.folder.rglob(f"*.{end}")]
    assert store.operations.pending() == set()
    assert verify_store(store).problems == ()
