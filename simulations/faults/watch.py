"""Recording the system calls with which `fl_unlearn.files` changes a folder, and refusing them room."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import Any, Self

from simulations.faults.tape import Tape

_CALLS = ("open", "close", "write", "pwrite", "fsync", "fdatasync", "replace", "unlink", "mkdir")
_numbers = itertools.count()


class Watch:
    """While it is entered, changes below ``root`` are recorded on ``tape`` for `disk.Disk.replay`.

    Names are recorded before they change, contents after they were written or synced: of what a kill
    interrupts, the record holds what may, not what must be there.

    Args:
        tape: Where to record.
        root: The folder; what SQLite does in it is not seen.
        step: Called before each change, and in the middle of each write.
    """

    def __init__(self, tape: Tape, root: str, step: Callable[[], None] = lambda: None) -> None:
        self.tape, self.root, self._step = tape, os.path.join(root, ""), step
        self.full = False
        self._real: dict[str, Callable[..., Any]] = {}
        self._folders: dict[int, str] = {}
        self._files: dict[int, tuple[str, int]] = {}  # descriptor to its key on the tape and its position

    def __enter__(self) -> Self:
        self._real = {name: getattr(os, name) for name in _CALLS}
        for name in _CALLS:
            setattr(os, name, getattr(self, f"_{name}", None) or self._named(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._real.items():
            setattr(os, name, call)

    def _inside(self, path: Any) -> str | None:
        text = os.path.abspath(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
        return os.path.relpath(text, self.root) if os.path.join(text, "").startswith(self.root) else None

    def _open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        inside = self._inside(path)
        if inside is None or not flags & (os.O_WRONLY | os.O_RDWR):
            fd: int = self._real["open"](path, flags, *args, **kwargs)
            self._forget(fd)
            if inside is not None and os.path.isdir(path):
                self._folders[fd] = inside
            return fd
        self._step()
        key = f"{os.getpid()}-{next(_numbers)}"
        self.tape.add("open", key, inside, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC))
        fd = self._real["open"](path, flags, *args, **kwargs)
        self._forget(fd)
        self._files[fd] = key, 0
        return fd

    def _close(self, fd: int) -> None:
        self._forget(fd)
        self._real["close"](fd)

    def _forget(self, fd: int) -> None:
        self._folders.pop(fd, None)
        self._files.pop(fd, None)

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self._files:
            return int(self._real["write"](fd, data))
        at = self._files[fd][1]
        done = self._torn(fd, data, at, lambda piece, _: self._real["write"](fd, piece))
        self._files[fd] = self._files[fd][0], at + done
        return done

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._torn(fd, data, offset, lambda piece, at: self._real["pwrite"](fd, piece, at))

    def _torn(self, fd: int, data: Any, offset: int, write: Callable[[Any, int], int]) -> int:
        """Half of it is written, then the other half; or there is no room for that."""
        done = 0
        for end in (len(data) // 2, len(data)):
            self._step()
            if self.full and end == len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = write(data[done:end], offset + done)
            if fd in self._files:
                piece = bytes(data[done : done + written])
                self.tape.add("write", self._files[fd][0], offset + done, piece)
            done += written
        return done

    def _fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def _fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def _sync(self, call: str, fd: int) -> None:
        self._step()
        self._real[call](fd)
        if fd in self._files:
            self.tape.add("sync", self._files[fd][0])
        elif fd in self._folders:
            self.tape.add("syncdir", self._folders[fd])

    def _named(self, call: str) -> Callable[..., Any]:
        def named(*args: Any, **kwargs: Any) -> Any:
            inside = [self._inside(a) for a in args[: 2 if call == "replace" else 1]]
            if None not in inside:
                self._step()
                self.tape.add(call, *inside)
            return self._real[call](*args, **kwargs)

        return named
