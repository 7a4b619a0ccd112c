"""A disk as a power cut leaves it: what was synced is there, the rest may be, in part and in any order.

The contents of a file last from its fsync or fdatasync on; of what was written since, any version of any
sector may be found, and any of the sizes it had. Its name (made, replaced, removed) lasts from the fsync of
its folder on; a replacement happens or does not, nothing in between. That is weaker than what common file
systems promise. SQLite's own files are taken as they are: it syncs them itself, and is trusted to.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

from simulations.faults.tape import Record

SECTOR = 512
MODES = ("nothing", "prefix", "any")
"""Which unsynced changes reach the disk: none; of names, the first so many; any."""

_FOLDER = -1


class Disk:
    """What is in a folder, and what of it would outlast a power cut.

    Args:
        root: The folder; it is there, and empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._forget()

    def _forget(self) -> None:
        self._names: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._waiting: list[Record] = []
        self._versions: dict[int, list[bytes]] = {}  # of each file, from the last synced on
        self._open: dict[str, int | None] = {}

    # ------------------------------------------------------------------ what processes do
    def replay(self, records: Iterable[Record]) -> None:
        """Take in what `watch.Watch` recorded; other records are passed over."""
        for kind, *values in records:
            handler = getattr(self, f"_on_{kind}", None)
            if handler:
                handler(*values)

    def _on_open(self, key: str, name: str, create: bool, truncate: bool) -> None:
        if create and name not in self._names:
            number = len(self._versions)
            self._versions[number] = [b""]
            self._rename(("link", name, number))
        number = self._names.get(name, _FOLDER)
        self._open[key] = None if number == _FOLDER else number
        if truncate and number != _FOLDER and self._versions[number][-1]:
            self._versions[number].append(b"")

    def _on_write(self, key: str, offset: int, data: bytes) -> None:
        if (number := self._open.get(key)) is not None:
            last = self._versions[number][-1].ljust(offset, b"\0")
            self._versions[number].append(last[:offset] + data + last[offset + len(data) :])

    def _on_sync(self, key: str) -> None:
        if (number := self._open.get(key)) is not None:
            del self._versions[number][:-1]

    def _on_mkdir(self, name: str) -> None:
        parent = os.path.dirname(name)
        if name not in self._names and (not parent or parent in self._names):
            self._rename(("link", name, _FOLDER))

    def _on_replace(self, source: str, target: str) -> None:
        if source in self._names:
            self._rename(("move", target, self._names[source], source))

    def _on_unlink(self, name: str) -> None:
        if name in self._names:
            self._rename(("unlink", name))

    def _on_syncdir(self, folder: str) -> None:
        for change in [c for c in self._waiting if os.path.dirname(c[1]) == folder.removeprefix(".")]:
            self._waiting.remove(change)
            _apply(self._durable, change)

    def _rename(self, change: Record) -> None:
        _apply(self._names, change)
        self._waiting.append(change)

    # ------------------------------------------------------------------ what is found
    def contents(self) -> dict[str, bytes]:
        """The files as processes see them: name below the root to content."""
        return {name: self._versions[n][-1] for name, n in self._names.items() if n != _FOLDER}

    def observe(self) -> int:
        """Take in what a killed process did and could not record any more; returns how many files that is."""
        actual = {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if _modelled(p)}
        seen = self.contents()
        for name in seen.keys() - actual.keys():
            self._on_unlink(name)
        changed = [name for name, data in actual.items() if seen.get(name) != data]
        for name in changed:
            self._on_open("observed", name, True, False)
            self._versions[self._names[name]].append(actual[name])
        return len(changed) + len(seen.keys() - actual.keys())

    def cut_power(self, rng: random.Random, mode: str) -> int:
        """Make of the folder what a power cut leaves; returns how many unsynced changes were waiting.

        Args:
            rng: Chooses what reaches the disk.
            mode: One of `MODES`.
        """
        unsynced = len(self._waiting) + sum(len(v) - 1 for v in self._versions.values())
        names = dict(self._durable)
        first = rng.randint(0, len(self._waiting))
        for number, change in enumerate(self._waiting):
            if (mode == "prefix" and number < first) or (mode == "any" and rng.random() < 0.5):
                _apply(names, change)
        left: dict[str, bytes | None] = {}
        for name, inode in names.items():
            parents = [str(p) for p in Path(name).parents][:-1]
            if all(names.get(p) == _FOLDER for p in parents):
                left[name] = None if inode == _FOLDER else _mixed(self._versions[inode], rng, mode)
        self._write(left)
        return unsynced

    def _write(self, left: dict[str, bytes | None]) -> None:
        """Make the folder so; what is in it then is on the disk."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            name = str(path.relative_to(self.root))
            if path.is_dir():
                if name not in left:
                    path.rmdir()
            elif _modelled(path) or os.path.dirname(name) not in left or path.name.endswith("-shm"):
                path.unlink()
        self._forget()
        for name, data in sorted(left.items()):
            self._names[name] = _FOLDER
            if data is None:
                (self.root / name).mkdir(exist_ok=True)
            else:
                (self.root / name).write_bytes(data)
                self._names[name] = len(self._versions)
                self._versions[self._names[name]] = [data]
        self._durable = dict(self._names)


def _apply(names: dict[str, int], change: Record) -> None:
    kind, name, *values = change
    if kind == "unlink":
        names.pop(name, None)
        return
    names[name] = values[0]
    if kind == "move":
        names.pop(values[1], None)


def _mixed(versions: list[bytes], rng: random.Random, mode: str) -> bytes:
    """A file of which each sector, and the size, is of any version since the last sync."""
    if mode == "nothing" or len(versions) == 1:
        return versions[0]
    size = len(rng.choice(versions))
    sectors = (rng.choice(versions)[at : at + SECTOR].ljust(SECTOR, b"\0") for at in range(0, size, SECTOR))
    return b"".join(sectors)[:size]


def _modelled(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(("lineage.sqlite", ".lock"))
