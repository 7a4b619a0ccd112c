"""Where request documents wait for whoever holds the store: one file each, in the store's folder.

Any process may put one there, or ask that one be cancelled, while a run holds the store; the holder takes
them in (`intake`). A file is written atomically and named by a ticket of its own, so that neither a crash nor
two writers at once can lose one or make one count twice.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fl_unlearn.files import PARTIAL, LocalFiles, disk_errors, make_folder, read_exactly, write_atomically
from fl_unlearn.types import RequestError, StoreError

log = logging.getLogger(__name__)

FOLDER = "inbox"
MOST_WAITING = 1000
"""How many documents may wait at once."""
_DOCUMENT, _CANCEL, _REFUSED = ".json", ".cancel", ".refused"
_TICKET = re.compile(r"[0-9]{20}-[0-9a-f]{12}", re.ASCII)
_STALE = 3600.0  # seconds after which a half-written file is nobody's any more


class InboxFullError(RequestError):
    """Too many documents wait; none was added."""


class Inbox:
    """The documents that wait in a store's folder.

    Args:
        store: The store's folder. Its inbox is made when the first document comes.
    """

    def __init__(self, store: Path) -> None:
        self.folder = Path(store).absolute() / FOLDER
        self._files = LocalFiles(self.folder)

    # ------------------------------------------------------------------ anybody
    def add(self, document: bytes, *, refused: tuple[str, str] | None = None) -> str:
        """Put a document there; it is durable when this returns.

        Args:
            document: Its bytes, as they came; they are checked when they are taken in.
            refused: Code and message, when whoever brings it has found already that it must be refused; it is
                then only recorded.

        Returns:
            Its ticket: tickets sort in the order of arrival.

        Raises:
            InboxFullError: If `MOST_WAITING` documents wait already.
            StoreError: If the file cannot be written.
        """
        if len(self.waiting()) >= MOST_WAITING:
            raise InboxFullError(
                f"{MOST_WAITING} documents wait in {self.folder} already; they are taken in when a run comes "
                "to its next round: try again then"
            )
        ticket = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        with disk_errors(self.folder):
            make_folder(self.folder)
        if refused is not None:  # before the document, which nobody may take in without it
            write_atomically(self.folder / (ticket + _REFUSED), "\n".join(refused).encode(errors="replace"))
        write_atomically(self.folder / (ticket + _DOCUMENT), document)
        return ticket

    def cancel(self, ticket: str) -> None:
        """Ask whoever holds the store not to serve a document; a no-op when that was asked before.

        Raises:
            RequestError: If ``ticket`` is none.
            StoreError: If it cannot be written down.
        """
        if not _TICKET.fullmatch(ticket):
            raise RequestError(f"{ticket!r} is no ticket of a document")
        with disk_errors(self.folder):
            make_folder(self.folder)
        write_atomically(self.folder / (ticket + _CANCEL), b"")

    def waiting(self) -> list[str]:
        """Tickets of the documents that wait, in the order of their arrival."""
        return self._named(_DOCUMENT)

    def cancellations(self) -> list[str]:
        """Tickets of the documents that are to be cancelled."""
        return self._named(_CANCEL)

    def read(self, ticket: str, most: int) -> bytes | None:
        """A waiting document; None when it is not there any more.

        Args:
            ticket: Which.
            most: Bytes that it may have; of a longer one as many and one more are read.

        Raises:
            StoreError: If it is no regular file, or cannot be read.
        """
        return self._read(ticket + _DOCUMENT, most + 1)

    # ------------------------------------------------------------------ the holder of the store
    def refused(self, ticket: str) -> tuple[str, str] | None:
        """Code and message with which whoever brought a document found that it must be refused."""
        data = self._read(ticket + _REFUSED, 1000)
        if data is None:
            return None
        code, _, message = data.decode(errors="replace").partition("\n")
        return code, message

    def remove(self, ticket: str) -> None:
        """Remove all that is kept of a document here, the document first.

        Raises:
            StoreError: If a file cannot be removed.
        """
        for end in (_DOCUMENT, _REFUSED, _CANCEL):
            self._files.remove(ticket + end)

    def sweep(self) -> None:
        """Remove what writers that died have left."""
        now = time.time()
        for path in self.folder.glob("*" + PARTIAL):
            with suppress(OSError):  # its writer may be about to rename it
                if now - path.lstat().st_mtime > _STALE:
                    path.unlink()
        documents = set(self.waiting())
        for ticket in set(self._named(_REFUSED)) - documents:
            # Written just before its document, which may be on its way.
            if now - received(ticket).timestamp() > _STALE:
                self._files.remove(ticket + _REFUSED)

    def _named(self, end: str) -> list[str]:
        tickets = (name.removesuffix(end) for name in self._files.names() if name.endswith(end))
        return [ticket for ticket in tickets if _TICKET.fullmatch(ticket)]

    def _read(self, name: str, most: int) -> bytes | None:
        try:
            with self._files.reader(name) as file:
                return bytes(read_exactly(file, most))
        except FileNotFoundError:
            return None
        except OSError as e:  # a symbolic link, a named pipe
            raise StoreError(f"cannot read {self.folder / name}: {e.strerror or e}") from e


def received(ticket: str) -> datetime:
    """When a document came, by the clock of whoever put it there; UTC, whole seconds."""
    seconds = int(ticket.partition("-")[0]) // 10**9
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):  # a name that somebody made up
        return datetime.fromtimestamp(0, UTC)
