"""A store of format 1, as earlier versions left it, is brought up to date when it is opened for writing."""

from __future__ import annotations

import json
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
import runs
import safetensors.torch
import torch
from cases_lineage import V1_SCHEMA

from fl_unlearn.audit_verify import verify_store
from fl_unlearn.dampen import apply_update
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import StoreError

UPDATE = runs.update()
# The run's tables, beside the lineage's.
LEDGER_1 = """
CREATE TABLE checkpoint (
    node_id INTEGER PRIMARY KEY REFERENCES node(id), digest TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE alias (owner TEXT PRIMARY KEY, client TEXT NOT NULL);
CREATE TABLE operation (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, client_update TEXT NOT NULL, request TEXT NOT NULL,
    done INTEGER NOT NULL);
CREATE TABLE application (
    operation_id INTEGER NOT NULL REFERENCES operation(id), node_id INTEGER NOT NULL REFERENCES node(id),
    before TEXT NOT NULL, after TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (operation_id, node_id));
CREATE TABLE outstanding (
    operation_id INTEGER NOT NULL REFERENCES operation(id), client TEXT NOT NULL,
    PRIMARY KEY (operation_id, client));
"""


def written(path: Path, state: runs.State, applied: tuple[str, ...] = ()) -> tuple[str, int]:
    about = json.dumps({"applied": list(applied)}, sort_keys=True)
    data = safetensors.torch.save(state, metadata={"fl_unlearn": about})
    path.write_bytes(data)
    return sha256(data).hexdigest(), len(data)


def old_store(folder: Path, *, pending: bool = False) -> None:
    """Two models; ``pending``: an update of the second was decided, and is not in place."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "updates").mkdir()
    (folder / "updates" / f"{UPDATE.digest}.safetensors").write_bytes(UPDATE.to_bytes())
    connection = sqlite3.connect(folder / "lineage.sqlite")
    connection.executescript(V1_SCHEMA + LEDGER_1)
    specs = {
        n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
        for n, t in runs.state(0).items()
    }
    connection.execute("INSERT INTO meta VALUES ('signature', ?)", (json.dumps(specs),))
    for number, (name, kind) in enumerate(
        [("g0", "initial"), ("c", "client-update"), ("g1", "aggregate")], 1
    ):
        owner = "0" if kind == "client-update" else None
        digest, size = written(folder / "checkpoints" / f"{name}.safetensors", runs.state(number))
        row = (number, name, kind, min(number - 1, 1), owner, 10 if owner else None, digest)
        connection.execute("INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
        connection.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", (number, digest, size))
        if number > 1:
            connection.execute("INSERT INTO edge VALUES (?, ?, 1.0)", (number, number - 1))
    if pending:
        after = apply_update(runs.state(3), UPDATE)
        staged = folder / "checkpoints" / "g1.safetensors.staged"
        new, size = written(staged, after, (UPDATE.digest,))
        request = '{"classes": [3], "clients": []}'
        values = (1, UPDATE.digest, UPDATE.digest, request, 0)
        connection.execute("INSERT INTO operation VALUES (?, ?, ?, ?, ?)", values)
        connection.execute("INSERT INTO application VALUES (1, 3, ?, ?, ?)", (digest, new, size))
        connection.execute("INSERT INTO outstanding VALUES (1, '0')")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("pending", [False, True])
def test_an_old_store_goes_on(pending: bool, tmp_path: Path) -> None:
    old_store(tmp_path, pending=pending)
    with pytest.raises(StoreError, match="open it once for writing"):
        RunStore(tmp_path, read_only=True)
    with RunStore(tmp_path, keep=runs.ALL) as store:
        runs.assert_sound(store)
        assert [n.name for n in store.umig.descendants(["g0"])] == ["c", "g1"]
        applied, state = runs.contents(store)["g1"]
        assert applied == ((UPDATE.digest,) if pending else ())
        expected = apply_update(runs.state(3), UPDATE) if pending else runs.state(3)
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
        assert set(store.operations.outstanding()) == ({"0"} if pending else set())
        runs.write_round(store, 2)
    with RunStore(tmp_path, read_only=True) as store:
        assert verify_store(store).ok
        assert "adopted" in {e.kind for e in store.audit.entries()}


def test_an_old_store_with_a_changed_file_stays_as_it_is(tmp_path: Path) -> None:
    old_store(tmp_path)
    path = tmp_path / "checkpoints" / "c.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"c.safetensors is not what its ledger says, so its ledger stays"):
        RunStore(tmp_path)
    connection = sqlite3.connect(tmp_path / "lineage.sqlite")
    columns = [c[1] for c in connection.execute("PRAGMA table_info(checkpoint)")]
    connection.close()
    assert columns == ["node_id", "digest", "size"]
    path.write_bytes(data)
    with RunStore(tmp_path) as store:
        runs.assert_sound(store)
