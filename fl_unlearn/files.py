"""Files in one flat folder: on a local disk, with synced writes, or wherever fsspec reaches."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, cast

from fl_unlearn.types import StoreError, StoreFullError

PARTIAL = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PIECE = 1 << 30  # the system takes at most 2 GiB at once

Bytes = bytes | bytearray | memoryview


class Files(Protocol):
    """A flat folder of files.

    Attributes:
        address: Where it is, for people and for `open_files`.
        in_place: Whether `patch` works: parts of a file can be overwritten durably.
    """

    address: str
    in_place: bool

    def names(self) -> list[str]:
        """Names of the files, sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def reader(self, name: str) -> IO[bytes]:
        """Open a file for reading, unbuffered; FileNotFoundError when there is none."""

    def write(self, name: str, chunks: Iterable[Bytes]) -> None:
        """Write a new file, or replace one; what a crash leaves of it may be torn."""

    def patch(self, name: str, runs: Iterable[tuple[int, Bytes]]) -> None:
        """Overwrite bytes of a file at the given offsets, durably; its size stays."""

    def replace(self, source: str, target: str) -> None:
        """Put one file in another's place."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def sync(self) -> None:
        """Make what was written, replaced and removed last through a power cut."""


def open_files(address: str | Path) -> Files:
    """The files at an address: a path, or anything that fsspec understands (``s3://bucket/run``).

    Raises:
        StoreError: If nothing installed understands the address, or the folder cannot be made.
    """
    if isinstance(address, Path) or "://" not in address:
        return LocalFiles(Path(address))
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = fsspec.url_to_fs(address)
    except (ImportError, ValueError, OSError) as e:
        raise StoreError(f"cannot use the address {address!r}: {e}; install what serves it") from e
    return (
        LocalFiles(Path(path)) if isinstance(system, LocalFileSystem) else RemoteFiles(address, system, path)
    )


@contextmanager
def disk_errors(what: object) -> Iterator[None]:
    """Errors of the system become StoreErrors that name ``what`` was being written."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise StoreFullError(
                f"no room left while writing {what} ({e.strerror}); the file was not changed. "
                "Free some space or choose a smaller keep policy, then repeat"
            ) from e
        if e.errno == errno.ELOOP:
            raise StoreError(f"{what} is a symbolic link; put a regular file there instead") from e
        raise StoreError(f"cannot write {what}: {e.strerror or e}") from e


class LocalFiles:
    """Files on a local disk. What `write` and `patch` return from is on the disk, names aside (`sync`).

    Args:
        folder: Where they are; made when first written to.
    """

    in_place = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.address = str(self.folder)
        self._made = False

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self.folder / name

    def names(self) -> list[str]:
        """See `Files`."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StoreError(f"cannot read {self.folder}: {e.strerror or e}") from e

    def size(self, name: str) -> int:
        """See `Files`; of a symbolic link, its own."""
        return self.path(name).lstat().st_size

    def reader(self, name: str) -> IO[bytes]:
        """See `Files`; a symbolic link, which could lead out of the store, is refused."""
        return cast("IO[bytes]", os.fdopen(self._open(name, os.O_RDONLY), "rb", buffering=0))

    def write(self, name: str, chunks: Iterable[Bytes]) -> None:
        """See `Files`."""
        with disk_errors(self.path(name)):
            try:
                if not self._made:
                    make_folder(self.folder)
                    self._made = True
                fd = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                try:
                    for chunk in chunks:
                        _write_all(fd, chunk)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(self.path(name))
                raise

    def patch(self, name: str, runs: Iterable[tuple[int, Bytes]]) -> None:
        """See `Files`."""
        with disk_errors(self.path(name)):
            fd = self._open(name, os.O_WRONLY)
            try:
                for offset, data in runs:
                    _write_all(fd, data, offset)
                (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)  # macOS has only the other
            finally:
                os.close(fd)

    def replace(self, source: str, target: str) -> None:
        """See `Files`."""
        with disk_errors(self.path(target)):
            os.replace(self.path(source), self.path(target))

    def remove(self, name: str) -> None:
        """See `Files`."""
        with disk_errors(self.path(name)), suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def sync(self) -> None:
        """See `Files`."""
        with disk_errors(self.folder), suppress(FileNotFoundError):
            sync_folder(self.folder)

    def _open(self, name: str, flags: int) -> int:
        # NONBLOCK: a named pipe put there must be refused, not waited for.
        fd = os.open(self.path(name), flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        return fd


class RemoteFiles:
    """Files behind an fsspec file system. Durability and atomic replacing are what that system gives."""

    in_place = False

    def __init__(self, address: str, system: Any, path: str) -> None:
        self.address, self._system, self._path = address, system, path.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def names(self) -> list[str]:
        """See `Files`."""
        with self._errors("list", self.address), suppress(FileNotFoundError):
            found = self._system.ls(self._path, detail=True)
            return sorted(f["name"].rsplit("/", 1)[-1] for f in found if f["type"] == "file")
        return []

    def size(self, name: str) -> int:
        """See `Files`."""
        with self._errors("read", name):
            return int(self._system.size(self._at(name)))

    def reader(self, name: str) -> IO[bytes]:
        """See `Files`."""
        with self._errors("read", name):
            return cast("IO[bytes]", self._system.open(self._at(name), "rb"))

    def write(self, name: str, chunks: Iterable[Bytes]) -> None:
        """See `Files`."""
        with self._errors("write", name):
            self._system.makedirs(self._path, exist_ok=True)
            with self._system.open(self._at(name), "wb") as f:
                for chunk in chunks:
                    f.write(chunk)

    def patch(self, name: str, runs: Iterable[tuple[int, Bytes]]) -> None:
        """Not possible here."""
        raise StoreError(f"{self.address} cannot change {name} in place; its files are rewritten instead")

    def replace(self, source: str, target: str) -> None:
        """See `Files`. Copied, then removed: a crash in between leaves both, and it can be repeated."""
        with self._errors("write", target):
            self._system.copy(self._at(source), self._at(target))
            self._system.rm_file(self._at(source))

    def remove(self, name: str) -> None:
        """See `Files`."""
        with self._errors("remove", name):
            if self._system.exists(self._at(name)):
                self._system.rm_file(self._at(name))

    def sync(self) -> None:
        """Nothing to do: each call has waited for the other side's answer."""

    @contextmanager
    def _errors(self, verb: str, what: str) -> Iterator[None]:
        try:
            # File systems remember listings, and with them that a file was not there: another process (a task
            # of Ray's, say) may have written it since.
            self._system.invalidate_cache()
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as e:  # each file system has errors of its own
            raise StoreError(f"cannot {verb} {what} at {self.address}: {type(e).__name__}: {e}") from e


def write_atomically(path: Path, *data: Bytes) -> None:
    """Write a local file so that after a crash it is either absent (or the old one), or whole.

    Args:
        path: Where; its folder must be there.
        data: Its content, in one or more parts.

    Raises:
        StoreFullError: If the disk is full; nothing is left behind.
        StoreError: If the file cannot be written for another reason.
    """
    files = LocalFiles(path.parent)
    with disk_errors(path):
        os.stat(path.parent)  # a folder that is not there is a mistake here, not one to be made
    files.write(path.name + PARTIAL, data)
    try:
        files.replace(path.name + PARTIAL, path.name)
        files.sync()
    except BaseException:
        with suppress(OSError):
            os.unlink(files.path(path.name + PARTIAL))
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a crash left of files that were being written into ``folder`` by `write_atomically`."""
    for leftover in folder.glob("*" + PARTIAL):
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder, and its parents, so that they outlast a power cut.

    One that is there is made durable too: a crash may have come between making and syncing it.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    with suppress(PermissionError):  # a folder that may not be read cannot be synced
        sync_folder(folder.parent)


def read_exactly(file: IO[bytes], size: int) -> bytearray:
    """The next ``size`` bytes of a file, fewer only where it ends."""
    data = bytearray(size)
    done = read_into(file, memoryview(data))
    del data[done:]
    return data


def read_into(file: IO[bytes], view: memoryview) -> int:
    """Fill ``view`` with the next bytes of a file; returns how many there were."""
    done = 0
    while done < len(view):
        got = cast("Any", file).readinto(view[done : done + _PIECE])
        if not got:
            break
        done += got
    return done


def _write_all(fd: int, data: Bytes, offset: int | None = None) -> None:
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        piece = view[done : done + _PIECE]
        done += os.write(fd, piece) if offset is None else os.pwrite(fd, piece, offset + done)
