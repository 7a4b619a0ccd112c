"""Files: written whole or not at all, patched in place, read back the same at any address."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn import files as files_module
from fl_unlearn.files import (
    Files,
    LocalFiles,
    RemoteFiles,
    make_folder,
    open_files,
    read_exactly,
    write_atomically,
)
from fl_unlearn.types import StoreError, StoreFullError


def entries(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFullError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreFullError),
        (OSError(errno.EFBIG, "File too large"), StoreFullError),
        (PermissionError(errno.EACCES, "Permission denied"), StoreError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full", "quota", "too large", "denied", "interrupted"],
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failing_write_leaves_the_old_file_whole(
    old: bytes | None,
    error: BaseException,
    raised: type[BaseException],
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    before, write = entries(tmp_path), os.write

    def fail(*args: Any) -> None:
        if step == "write":
            write(args[0], args[1][: len(args[1]) // 2])
        raise error

    with monkeypatch.context() as m:
        m.setattr(os, step, fail)
        with pytest.raises(raised) as caught:
            write_atomically(path, b"new and longer")
    assert type(caught.value) is raised
    assert entries(tmp_path) == before
    if raised is not KeyboardInterrupt:
        assert str(path) in str(caught.value)
    write_atomically(path, b"new and longer")
    assert entries(tmp_path) == {"file": b"new and longer"}


def test_data_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    kind = {True: "folder", False: "file"}
    synced = lambda fd: (events.append(kind[stat.S_ISDIR(os.fstat(fd).st_mode)]), fsync(fd))  # noqa: E731
    monkeypatch.setattr(os, "fsync", synced)
    write_atomically(tmp_path / "file", b"data")
    assert events == ["folder", "file", "rename", "folder"]


def test_a_folder_and_its_parents_outlast_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is synced into its parent before anything is put in it; one that is there, again."""
    events: list[str] = []
    mkdir = Path.mkdir
    monkeypatch.setattr(files_module, "sync_folder", lambda folder: events.append(f"sync {folder.name}"))
    monkeypatch.setattr(Path, "mkdir", lambda p, **kw: (events.append(f"make {p.name}"), mkdir(p, **kw)))
    top = tmp_path.name
    make_folder(tmp_path / "a" / "b")
    above = f"sync {tmp_path.parent.name}"
    assert events == [above, "make a", f"sync {top}", "make b", "sync a"]
    del events[:]
    make_folder(tmp_path / "a" / "b")
    assert events == ["sync a"]


# --------------------------------------------------------------------------- any address
@pytest.fixture(params=["path", "file://", "memory://"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    if request.param == "memory://":
        address = f"memory://{uuid.uuid4().hex}/deep er/run"
        yield open_files(address)
        fsspec.filesystem("memory").store.clear()
    elif request.param == "file://":
        yield open_files(f"file://{tmp_path}/deep er/run")
    else:
        yield open_files(tmp_path / "deep er" / "run")


def content(files: Files, name: str) -> bytes:
    with files.reader(name) as f:
        return bytes(read_exactly(f, 1000))


def test_write_read_replace_remove(files: Files) -> None:
    assert files.names() == []
    files.remove("absent")
    with pytest.raises(FileNotFoundError):
        files.reader("absent")
    files.write("b", (b"12", memoryview(b"345"), bytearray(b"")))
    files.write("a %", iter([b"x"]))
    files.write("a %", [b"y"])
    assert files.names() == ["a %", "b"]
    assert content(files, "b") == b"12345"
    assert content(files, "a %") == b"y"
    with files.reader("b") as f:
        assert f.seek(0, 2) == 5
        f.seek(1)
        assert read_exactly(f, 2) == b"23"
        assert read_exactly(f, 9) == b"45"
    files.replace("a %", "b")
    files.sync()
    assert (files.names(), content(files, "b")) == (["b"], b"y")
    files.remove("b")
    assert files.names() == []


def test_patching(files: Files) -> None:
    files.write("a", [b"0123456789"])
    if not files.in_place:
        with pytest.raises(StoreError, match="rewritten instead"):
            files.patch("a", [(0, b"x")])
        return
    files.patch("a", [(0, b"x"), (8, b"yz")])
    assert content(files, "a") == b"x1234567yz"
    with pytest.raises(StoreError, match="cannot write"):
        files.patch("absent", [(0, b"x")])
    assert files.names() == ["a"]


@given(
    data=st.binary(min_size=1, max_size=60),
    runs=st.lists(st.tuples(st.integers(0, 59), st.binary(max_size=9)), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_patching_is_writing_bytes(
    data: bytes, runs: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files, expected = LocalFiles(tmp_path_factory.mktemp("f")), bytearray(data)
    runs = [(at, new) for at, new in runs if at + len(new) <= len(data)]
    for at, new in runs:
        expected[at : at + len(new)] = new
    files.write("a", [data])
    files.patch("a", runs)
    assert content(files, "a") == bytes(expected)


@pytest.mark.parametrize("address", ["nothing-serves-this://x", "bogus+zip://a::b://c"])
def test_addresses_that_nothing_serves(address: str) -> None:
    with pytest.raises(StoreError, match="cannot use the address"):
        open_files(address)


def test_errors_of_other_systems_are_named() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no answer")

    files = RemoteFiles("far://away", Broken(), "away")
    for call in (files.names, lambda: files.write("a", [b""]), lambda: files.reader("a")):
        with pytest.raises(StoreError, match=r"far://away: RuntimeError: no answer"):
            call()
    for call in (lambda: files.replace("a", "b"), lambda: files.remove("a")):
        with pytest.raises(StoreError, match="no answer"):
            call()


class Remembering(MemoryFileSystem):
    """Remembers listings, and asks them first, as those of object stores do."""

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        return self.dircache[path]

    def info(self, path: str, **_: Any) -> Any:
        found = self._ls_from_cache(path)
        return found[0] if found else super().info(path)

    def exists(self, path: str, **_: Any) -> bool:
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb":
            self.info(path)
        return super()._open(path, mode, *args, **kwargs)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.info(path1)
        super().cp_file(path1, path2, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_what_another_process_wrote_is_seen(tmp_path: Path) -> None:
    path = f"/{uuid.uuid4().hex}"
    here, there = (RemoteFiles("a", Remembering(skip_instance_cache=True), path) for _ in "ab")
    here.write("old", [b"0"])
    for name in ("read", "replaced", "removed"):
        assert name not in here.names()
        there.write(name, [b"new"])
        if name == "read":
            with here.reader(name) as f:
                assert f.read() == b"new"
            assert here.size(name) == 3
        elif name == "replaced":
            here.replace(name, "old")
        else:
            here.remove(name)
    assert there.names() == ["old", "read"]
    with there.reader("old") as f:
        assert f.read() == b"new"
