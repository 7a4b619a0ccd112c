"""Checkpoint files: atomic, exact, reproducible, and refused with one error when anything is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.store import CheckpointStore, KeepPolicy
from fl_unlearn.tensor_file import Checkpoint, decode, encode
from fl_unlearn.types import CorruptCheckpointError, SettingsError, StoreError

APPLIED = ("0" * 64, "f" * 64)


def entries(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_stage_promote_discard(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "made" / "here")
    store.write("a", runs.state(1))
    info = runs.stage(store, "a", runs.state(2), ("d",))
    runs.assert_same(dict(sorted(store.read("a").state.items())), dict(sorted(runs.state(1).items())))
    assert store.staged_names() == {"a"} == store.names()
    store.promote("a")
    store.promote("a")  # done before: nothing happens
    assert store.read("a", info.digest).applied == ("d",)
    runs.stage(store, "a", runs.state(3), ())
    store.discard("a")
    store.discard("a")
    assert store.staged_names() == set()
    assert store.read("a").info == info
    store.delete("a")
    store.delete("a")
    assert store.names() == set()
    with pytest.raises(CorruptCheckpointError, match=r"a.safetensors is missing; restore it"):
        store.read("a")


def test_unreadable_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file"):
        CheckpointStore(tmp_path / "file").write("m", runs.state(1))
    with pytest.raises(StoreError, match=r"cannot read .*Not a directory"):
        CheckpointStore(tmp_path / "file").names()
    store = CheckpointStore(tmp_path / "store")
    assert store.names() == set()
    store.path("folder").mkdir(parents=True)
    os.mkfifo(store.path("pipe"))
    (tmp_path / "outside").write_bytes(encode(runs.state(1)))
    store.path("link").symlink_to(tmp_path / "outside")
    for name in ("folder", "pipe", "link"):
        with pytest.raises(StoreError, match=r"cannot read .*must be a regular file") as caught:
            store.read(name)
        assert not isinstance(caught.value, CorruptCheckpointError)
    store.write("link", runs.state(2))  # in the link's place
    assert int(store.read("link").state["steps"]) == 2
    (store.folder / "other.safetensors.partial").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="symbolic link"):
        store.write("other", runs.state(2))
    assert (tmp_path / "outside").read_bytes() == encode(runs.state(1))


# --------------------------------------------------------------------------- names
ODD = ["..", ".", "../../up", "/etc/passwd", "a/b", "a\\b", "%2e%2e", "%", ".hidden", "~", "ü-模型-🙂", "a b"]
ODD += ["x.safetensors", "x.safetensors.staged", "x.partial", "*", "[a]", "?", "-rf", "a\nb", "C:con", "a\0b"]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names_round_trip_inside_the_folder(name: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.write("other", runs.state(1))
    store.write(name, runs.state(2))
    runs.stage(store, name, runs.state(3), ())
    assert store.names() == {"other", name}
    assert store.staged_names() == {name}
    assert store.path(name).parent == store.folder
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints"]
    assert all(p.is_file() and p.resolve().parent == store.folder for p in store.folder.iterdir())
    assert int(store.read(name).state["steps"]) == 2
    store.promote(name)
    assert int(store.read(name).state["steps"]) == 3
    store.delete(name)
    assert store.names() == {"other"}


@given(names=st.sets(st.text(st.characters(codec="utf-8"), min_size=1, max_size=15), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_names_have_files_of_their_own(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("names"))
    for name in names:
        store.path(name).write_bytes(name.encode())
    assert store.names() == names
    assert {store.path(n).read_bytes().decode() for n in names} == names


# --------------------------------------------------------------------------- contents
def odd_state() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shared = torch.randn(4, 4, generator=g)
    return {
        "tied.b": shared,
        "tied.a": shared,
        "view": shared[1:, ::2],
        "transposed": shared.T,
        "channels last": torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(-0.0),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "float16": torch.randn(3, generator=g).half(),
        "bfloat16": torch.randn(3, generator=g).bfloat16(),
        "float64": torch.randn(3, generator=g).double(),
        "not finite": torch.tensor([float("nan"), float("inf"), -float("inf")]),
        "bool": torch.tensor([True, False]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def check_same(got: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    assert got.state.keys() == state.keys()
    for name, tensor in state.items():
        found = got.state[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        torch.testing.assert_close(found, tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_any_tensors_round_trip(tmp_path: Path) -> None:
    store, state = CheckpointStore(tmp_path), odd_state()
    info = store.write("m", state, APPLIED)
    got = store.read("m", info.digest)
    check_same(got, state)
    assert got.applied == APPLIED
    assert got.info == info
    assert info.size == store.path("m").stat().st_size
    assert got.state["tied.a"].data_ptr() != got.state["tied.b"].data_ptr()
    assert torch.signbit(got.state["scalar"])
    plain = safetensors.torch.load_file(store.path("m"))  # a standard file, for any other program
    assert plain.keys() == state.keys()
    check_same(decode(encode({}), "empty"), {})


def test_order_dtypes_and_bytes_are_those_of_safetensors() -> None:
    more = {
        "float8": torch.zeros(3).to(torch.float8_e4m3fn),
        "complex": torch.randn(3, dtype=torch.complex64),
        "also empty": torch.empty(0, dtype=torch.uint8),
        'odd "näme"': torch.zeros(4, dtype=torch.uint16),
    }
    state = odd_state() | more
    metadata = {"fl_unlearn": json.dumps({"applied": list(APPLIED)})}
    plain = safetensors.torch.save({n: t.clone().contiguous() for n, t in state.items()}, metadata=metadata)

    def split(data: bytes) -> tuple[list[object], bytes]:
        size = 8 + int.from_bytes(data[:8], "little")
        return list(json.loads(data[8:size]).items()), data[size:]

    assert split(encode(state, APPLIED)) == split(plain)


def test_large_files_have_the_digests_of_their_bytes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = odd_state() | {"large": torch.arange(2 << 20, dtype=torch.float32)}
    info = store.write("large", state, APPLIED)
    assert info.size > 8 << 20
    assert store.path("large").read_bytes() == encode(state, APPLIED)
    assert info == decode(encode(state, APPLIED), "large").info


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    data = encode(odd_state(), APPLIED)
    for _ in range(5):
        assert encode(odd_state(), APPLIED) == data
    assert encode(odd_state(), APPLIED[:1]) != data
    script = (
        "import hashlib, test_store as t; from fl_unlearn.tensor_file import encode;"
        "print(hashlib.sha256(encode(t.odd_state(), t.APPLIED)).hexdigest())"
    )
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "PYTHONHASHSEED": "7"}
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True, cwd=here
    )
    assert out.stdout.strip() == hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------- damage
DATA = encode(odd_state(), APPLIED)


@pytest.mark.parametrize("known", [False, True])
def test_truncation_anywhere_is_seen(known: bool, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    digest = decode(DATA, "whole").info.digest if known else None
    for size in [*range(0, len(DATA), 37), len(DATA) - 1]:
        store.path("m").write_bytes(DATA[:size])
        with pytest.raises(CorruptCheckpointError, match=r"m.safetensors .*truncated"):
            store.read("m", digest)


def test_a_changed_file_is_told_by_its_digest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    info = store.write("m", runs.state(1))
    for at in range(0, info.size, 13):
        data = bytearray(encode(runs.state(1)))
        data[at] ^= 1
        store.path("m").write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match=f"the ledger says {info.digest[:12]}"):
            store.read("m", info.digest)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"^here is truncated or not a safetensors file"):
        decode(data, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DTYPES = ["F32", "F64", "I64", "BOOL", "U16", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "X"]
INFO = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "shape": st.lists(st.integers(0, 4) | st.just(2**62), max_size=3),
        "data_offsets": st.just([0, 8]) | st.lists(st.integers(0, 20), min_size=2, max_size=2),
    }
)
HEADER = st.dictionaries(st.text(max_size=3), INFO | JSON, max_size=2) | JSON
META = st.fixed_dictionaries({"fl_unlearn": JSON.map(json.dumps) | st.text(max_size=9) | JSON})


@given(header=HEADER, meta=st.none() | META | JSON, body=st.sampled_from([b"", bytes(8), bytes(16)]))
@settings(max_examples=400, deadline=None)
def test_wild_headers_are_read_or_refused(header: Any, meta: Any, body: bytes) -> None:
    if isinstance(header, dict) and meta is not None:
        header = {**header, "__metadata__": meta}
    text = json.dumps(header).encode()
    try:
        got = decode(len(text).to_bytes(8, "little") + text + body, "here")
    except CorruptCheckpointError:
        return
    assert all(isinstance(d, str) for d in got.applied)


@pytest.mark.parametrize(
    "about", ["5", "[]", '{"applied": 5}', '{"applied": null}', '{"applied": [1]}', "[" * 100_000, "{"]
)
def test_nonsense_about_applied_updates(about: str) -> None:
    data = safetensors.torch.save({"w": torch.ones(2)}, metadata={"fl_unlearn": about})
    with pytest.raises(CorruptCheckpointError, match=r"not a safetensors file"):
        decode(data, "here")


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_that_torch_may_lack(dtype: str) -> None:
    text = json.dumps({"w": {"dtype": dtype, "shape": [], "data_offsets": [0, 1]}}).encode()
    for width in (1, 2, 4, 8):
        data = len(text).to_bytes(8, "little") + text.replace(b"[0, 1]", b"[0, %d]" % width) + bytes(width)
        try:
            assert decode(data, "here").applied == ()
        except CorruptCheckpointError:
            continue


def test_files_of_other_programs_have_no_updates() -> None:
    got = decode(safetensors.torch.save({"w": torch.ones(2)}, metadata={"format": "pt"}), "here")
    assert got.applied == ()
    check_same(got, {"w": torch.ones(2)})


# --------------------------------------------------------------------------- what to keep
def test_keep_policy() -> None:
    default = KeepPolicy()
    assert all(default.keeps(kind, 7) for kind in ("initial", "aggregate", "stage"))
    assert not default.keeps("client-update", 7)
    third = KeepPolicy(aggregates=True, client_updates=True, every=3)
    assert [r for r in range(10) if third.keeps("aggregate", r)] == [0, 3, 6, 9]
    assert [r for r in range(10) if third.keeps("client-update", r)] == [0, 3, 6, 9]
    assert all(third.keeps("initial", r) and third.keeps("stage", r) for r in range(10))
    assert not KeepPolicy(aggregates=False).keeps("aggregate", 0)


@pytest.mark.parametrize(
    ("values", "match"), [({"every": 0}, "n >= 1, got 0"), ({"byte_budget": 0}, "above 0, got 0")]
)
def test_senseless_policies(values: dict[str, int], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        KeepPolicy(**values)  # type: ignore[arg-type]
