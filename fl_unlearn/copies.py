"""Copies of models that one client keeps on its disk: remembered in a small file, changed exactly once.

A book in a folder of the client's own says where the copies are and which updates each has. An update is
applied to one copy after the other: its successor is written beside it, the book notes what is about to be
done, the successor takes the copy's place, the book notes that it is done. Whatever instant a process dies
at, the next one tells from the file's digest whether the copy has the update.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from fl_unlearn.copies_book import FAILED, Book, Copy, Receipt
from fl_unlearn.copy_file import CopyError, ForeignCopyError, change_file, check_file
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.files import LocalFiles, disk_errors, make_folder, read_exactly, write_atomically
from fl_unlearn.lock import lock_folder
from fl_unlearn.types import Signature, StoreError, TensorSpec, UnlearnError

log = logging.getLogger(__name__)

_BOOK, _UPDATES, _STAGED = "copies.json", "updates", ".unlearned"
_WAIT = 60.0  # seconds for another process of the same client


class CopyRegistry:
    """The copies that one client keeps, remembered in a folder of its own.

    Args:
        folder: The client's own folder, of one federation; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = b""

    def add(
        self,
        path: Path,
        has: Sequence[str],
        *,
        name: str | None = None,
        personal: bool = False,
        run: int | None = None,
    ) -> None:
        """Note that a model was saved; updates that the client knows of and the model lacks are applied now.

        Args:
            path: The file.
            has: Digests of the updates that the saved model has had.
            name: What receipts call it; default the file's name.
            personal: Its layers go on from what the file held before, so it has had what the file had.
            run: The Flower run in which it was trained; None: that of every update.

        Raises:
            CopyError: If there is no such file, or it is neither a safetensors file nor a state dict; or if
                the updates that it lacks are of other runs, so that it must be another federation's.
            StoreError: If it cannot be remembered.
        """
        path = Path(path).resolve()
        if not path.is_file():
            raise CopyError(f"there is no file {path} to keep; register a copy after it was saved")
        with self._open() as book:
            self._check_run(book, has, run)
            copy = book.find(path)
            if copy is None or copy.dropped:
                check_file(_read(path)[0])
                if copy is not None:
                    book.copies.remove(copy)
                copy = Copy(str(path), book.name_for(path, name), list(has))
                book.copies.append(copy)
            elif not personal:
                copy.has = list(has)
                for digest in has:  # what could not be done to the file before is nothing to this one
                    if copy.receipts.get(digest, {}).get("status", "").startswith(FAILED):
                        del copy.receipts[digest]
            for digest in book.updates:
                if digest not in copy.has:
                    self._catch_up(book, copy, digest)

    def remove(self, path: Path) -> None:
        """Note that a copy is no longer kept. What could not be dampened is then no longer waited for."""
        with self._open() as book:
            # First by its own name: a link may have come in the copy's place.
            if copy := book.find(path.parent.resolve() / path.name) or book.find(path.resolve()):
                if _waits(copy, ""):
                    copy.dropped = True
                else:
                    book.copies.remove(copy)

    def apply(
        self, update: DampeningUpdate, model: Signature, *, store: str = "", run: int | None = None
    ) -> list[Receipt]:
        """Apply an update to every copy that lacks it.

        Args:
            update: The update.
            model: The project's model's tensors.
            store: Id of the store of the server that sent it; "": not known.
            run: The Flower run in which it came; None: not known.

        Returns:
            What became of each copy, and receipts of copies that were brought up to date since the last time.

        Raises:
            StoreError: If the copies cannot be told, or the update not be kept. Then it is to be repeated.
                Also if they are another federation's.
        """
        with self._open() as book:
            if store and book.store not in ("", store):
                raise StoreError(
                    f"{self.folder} remembers copies of the federation whose store is {book.store[:12]}, and "
                    f"this update is of the store {store[:12]}; give each federation a folder of its own"
                )
            book.store = book.store or store
            if run is not None:
                book.told_in.setdefault(update.digest, run)
            book.copies = [c for c in book.copies if not c.dropped or _waits(c, update.digest)]
            book.model = {n: [list(s.shape), s.dtype] for n, s in model.items()}
            self._keep(update)
            if update.digest not in book.updates:
                book.updates.append(update.digest)
            receipts = []
            for copy in book.copies:
                if update.digest not in copy.has:
                    self._bring(book, copy, update, model)
                elif update.digest not in copy.receipts:
                    said = "nothing to do: it was saved from a model that had the update"
                    copy.receipts[update.digest] = {"copy": copy.name, "status": said}
                receipts += _to_tell(copy, update.digest)
            return receipts

    def _check_run(self, book: Book, has: Sequence[str], run: int | None) -> None:
        """A later run of the same federation tells of all earlier updates in every training message."""
        strange = [d for d in book.updates if d not in has and book.told_in.get(d, run) != run]
        if run is not None and strange:
            raise CopyError(
                f"{self.folder} remembers updates of another run (the first: {strange[0][:12]}), which this "
                "run's model has not had: this is another federation, or the server's store was put back. "
                f"Give each federation a folder of its own, or remove {self.folder / _BOOK}"
            )

    # ------------------------------------------------------------------ one copy
    def _catch_up(self, book: Book, copy: Copy, digest: str) -> None:
        """Apply an update that was decided while the model that was saved was being trained, say."""
        try:
            data = (self.folder / _UPDATES / f"{digest}.safetensors").read_bytes()
            update = DampeningUpdate.from_bytes(data)
            if update.digest != digest:
                raise CopyError("the update kept for it is another")
        except (OSError, UnlearnError) as e:
            self._failed(copy, digest, f"the update that it lacks cannot be read ({e})")
            return
        signature = {n: TensorSpec(tuple(shape), dtype) for n, (shape, dtype) in book.model.items()}
        self._bring(book, copy, update, signature)

    def _bring(self, book: Book, copy: Copy, update: DampeningUpdate, model: Signature) -> None:
        """Apply an update to one copy, all of it or nothing."""
        digest, path = update.digest, Path(copy.path)
        if copy.dropped:
            said = "skipped: the client no longer keeps it"
            self._done(copy, digest, {"copy": copy.name, "status": said})
            return
        try:
            data, mode = _read(path)
            done = change_file(data, update, model)
            receipt = {"copy": copy.name, "before": done.before, "after": done.after}
            if done.data is None:
                receipt["status"] = "skipped: it holds none of the tensors that the update changes"
            else:
                some = ", ".join(repr(n[:40]) for n in done.absent[:2])
                more = f" and {len(done.absent) - 2} more" if len(done.absent) > 2 else ""
                receipt["status"] = f"applied; not in it: {some}{more}" if some else "applied"
                self._replace(book, copy, digest, done.data, mode, receipt)
            self._done(copy, digest, receipt)
        except ForeignCopyError as e:
            self._failed(copy, digest, f"it is no copy of this model: {e}")
        except (UnlearnError, OSError) as e:
            self._failed(copy, digest, f"{e}")
        except Exception as e:  # of one file, whatever is in it: the others must get the update
            log.exception("the copy %s could not be dampened", path)
            self._failed(copy, digest, f"{type(e).__name__}: {e}")

    def _replace(self, book: Book, copy: Copy, digest: str, data: bytes, mode: int, receipt: Receipt) -> None:
        """Put a copy's successor in its place; the book says so before."""
        path = Path(copy.path)
        files, staged = LocalFiles(path.parent), path.name + _STAGED
        try:
            files.write(staged, [data])
            with disk_errors(path):
                os.chmod(files.path(staged), mode)
            book.pending = {"path": copy.path, "update": digest, "receipt": receipt}
            self._save(book)
            files.replace(staged, path.name)
            files.sync()
        except Exception:
            self._settle(book)  # what failed may be what came after the file was in place
            if digest not in copy.has:
                with suppress(OSError):
                    os.unlink(files.path(staged))
                raise
        book.pending = None

    @staticmethod
    def _done(copy: Copy, digest: str, receipt: Receipt) -> None:
        if digest not in copy.has:
            copy.has.append(digest)
        copy.receipts[digest] = receipt
        copy.told.pop(digest, None)

    def _failed(self, copy: Copy, digest: str, why: str) -> None:
        why = why.replace(str(Path(copy.path).parent) + os.sep, "")[:200]
        log.warning("the copy %s does not have update %s: %s", copy.path, digest[:12], why)
        copy.receipts[digest] = {"copy": copy.name, "status": FAILED + why}
        copy.told.pop(digest, None)

    # ------------------------------------------------------------------ the book
    @contextmanager
    def _open(self) -> Iterator[Book]:
        """The book, for one process at a time; what was changed in it is saved at the end."""
        with disk_errors(self.folder):
            make_folder(self.folder)
        with lock_folder(self.folder, _WAIT):
            path = self.folder / _BOOK
            try:
                was = path.read_bytes()
            except FileNotFoundError:
                was = Book().to_bytes()
            except OSError as e:
                raise StoreError(f"cannot read {path}: {e.strerror or e}") from e
            book, self._saved = Book.from_bytes(was, path), was
            self._settle(book)
            yield book
            self._save(book)

    def _save(self, book: Book) -> None:
        if (data := book.to_bytes()) != self._saved:
            write_atomically(self.folder / _BOOK, data)
            self._saved = data

    def _settle(self, book: Book) -> None:
        """Find out what became of the change that was about to be made when a process died."""
        if book.pending is None:
            return
        path, digest, receipt = Path(book.pending["path"]), book.pending["update"], book.pending["receipt"]
        with suppress(OSError):
            os.unlink(path.with_name(path.name + _STAGED))
        copy, book.pending = book.find(path), None
        with suppress(CopyError):
            if copy is not None and sha256(_read(path)[0]).hexdigest() == receipt["after"]:
                self._done(copy, digest, receipt)

    def _keep(self, update: DampeningUpdate) -> None:
        """Keep an update: for a model from before it that is still being trained, and saved later."""
        path = self.folder / _UPDATES / f"{update.digest}.safetensors"
        if not path.exists():
            with disk_errors(path.parent):
                make_folder(path.parent)
            write_atomically(path, update.to_bytes())


def _waits(copy: Copy, digest: str) -> bool:
    """Whether it has not been told yet that a copy is no longer kept."""
    return digest in copy.receipts or any(r["status"].startswith(FAILED) for r in copy.receipts.values())


def _to_tell(copy: Copy, digest: str) -> list[Receipt]:
    """The receipts that go with the answer about one update: its own, and those not told with an earlier one.

    An answer that was lost is given again, so those that it took along are too.
    """
    receipts = []
    for update, receipt in copy.receipts.items():
        if copy.told.setdefault(update, digest) == digest:
            late = {} if update == digest else {"update": update}
            receipts.append({**receipt, **late})
    return receipts


def _read(path: Path) -> tuple[bytes, int]:
    """A file's content and mode; of a symbolic link neither: replacing it would leave what it leads to."""
    try:
        with LocalFiles(path.parent).reader(path.name) as file:
            info = os.fstat(file.fileno())
            return bytes(read_exactly(file, info.st_size)), stat.S_IMODE(info.st_mode)
    except FileNotFoundError as e:
        raise CopyError("there is no such file") from e
    except OSError as e:
        raise CopyError(f"cannot be read: {e.strerror or e}") from e
