"""What must hold of a federation in which something went wrong: a clear error, and all is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flwr.app import ArrayRecord

from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    ForgetRequest,
    UnlearnError,
)

THREE = ForgetRequest((3,))


def files(store: RunStore) -> dict[str, str]:
    """Digest of every checkpoint and update file."""
    found = [p for p in store.folder.rglob("*") if p.is_file() and "sqlite" not in p.name]
    return {str(p.relative_to(store.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@contextmanager
def unchanged(
    strategy: UnlearningStrategy, arrays: ArrayRecord, error: type[Exception], match: str
) -> Iterator[None]:
    before, model, nodes = files(strategy.store), arrays.copy(), list(strategy.store.umig)
    with pytest.raises(error, match=match) as caught:
        yield
    assert isinstance(caught.value, UnlearnError)
    assert {n: d for n, d in files(strategy.store).items() if not n.startswith("updates")} == before
    assert arrays == model
    assert list(strategy.store.umig) == nodes
    assert strategy.store.operations.all() == []
