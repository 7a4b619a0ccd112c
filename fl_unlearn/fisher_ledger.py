"""A client's per-class Fisher sums on its own disk: a later class request is answered without the data.

Sums per class add, so one pass over the data answers every later request about classes for the same model:
the forgotten classes' sums are there, and the retained Fisher is the sum of the others.

A file's name says what it is about and ends in the SHA-256 of its content (`fisher_entry`). One that is not
exactly what it should be is logged and taken as absent, never as an answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_unlearn.batches import buffers_kept, check_labels, device_of, logits_of, to_device
from fl_unlearn.files import (
    PARTIAL,
    Bytes,
    LocalFiles,
    disk_errors,
    make_folder,
    write_atomically,
)
from fl_unlearn.fisher import FisherCollector, FisherSums, fisher_diagonal, resolve_scope
from fl_unlearn.fisher_entry import encode_entry, read_entry
from fl_unlearn.tensor_file import FileInfo, encode_parts
from fl_unlearn.types import FisherError, StoreError

log = logging.getLogger(__name__)

_SUFFIX = ".fisher"


def model_digest(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) over names, dtypes, shapes and bytes of a model's ``state_dict``."""
    header, tensors = encode_parts(model.state_dict())
    parts: list[Bytes] = [header, *tensors.values()]
    return FileInfo.of((sha256(part).digest() for part in parts), sum(map(len, parts))).digest


class LedgerPass:
    """One pass over a client's data that is noted as it goes; call it with each batch.

    Attributes:
        examples: Samples so far.
    """

    def __init__(self, model: nn.Module, collectors: Sequence[FisherCollector], where: torch.device) -> None:
        self.collectors, self.examples = collectors, 0
        self._model, self._where = model, where

    def __call__(self, x: Any, y: Tensor) -> Tensor:
        """Logits (N, C) of one batch of inputs ``x`` and labels ``y``, without a graph.

        Raises:
            FisherError: If the batch does not fit the model.
        """
        y = check_labels(y)
        self.examples += len(y)
        logits = [collector.add(x, y) for collector in self.collectors]
        return logits[0] if logits else logits_of(self._model, to_device(x, self._where))


class FisherLedger:
    """Per-class Fisher sums of one client's data, for the last models they were computed for.

    Args:
        folder: Where the files are; nobody else's files may end in ``.fisher`` there.
        data_key: Names the state of the client's data, and of the code that a model's tensors do not tell
            about: whatever changes the answer for the same tensors must change it. Entries with another key
            do not hold.
        keep: For how many models, the newest, entries are kept, for each kind and scope.
        max_bytes: Largest entry: 8 bytes for each parameter in scope and class, of which the model's head
            tells how many there are. What would be larger is not kept, nor accumulated class by class.
    """

    def __init__(self, folder: Path | str, data_key: str, *, keep: int = 1, max_bytes: int = 2**30) -> None:
        if keep < 1:
            raise FisherError(f"keep must be at least 1, got {keep}; to keep nothing, use no ledger")
        self.folder, self.data_key, self.keep, self.max_bytes = Path(folder), data_key, keep, max_bytes
        self._files = LocalFiles(self.folder)

    def get(
        self,
        model: nn.Module,
        *,
        kind: str = "normalized",
        scope: str = "head",
        head: str | None = None,
        without: Collection[int] = (),
    ) -> FisherSums | None:
        """The sums that hold for exactly this model, every class apart; None if there are none.

        Args:
            model: The model.
            kind: See `fisher.fisher_diagonal`.
            scope: See `fisher.resolve_scope`.
            head: Name of the head, where it is not the last ``nn.Linear``.
            without: Classes that the sums may lack.
        """
        return self._find(model, kind, scope, head, None, without)

    def put(
        self, digest: str, sums: FisherSums, *, head: str | None = None, without: Collection[int] = ()
    ) -> None:
        """Keep sums for later; what was kept for the same model, and for older ones, is removed.

        Args:
            digest: `model_digest` of the model.
            sums: Sums of every class apart, over all of the client's samples.
            head: As they were computed with.
            without: Classes that were left out of them, or are to be.

        Raises:
            FisherError: If classes are pooled, or the sums are of mini-batches.
            StoreError: If they cannot be written; what was there is as it was.
        """
        if sums.kind == "batch" or any(g < 0 for g in sums.sums):
            raise FisherError("a ledger keeps sums of samples, every class apart: kind 'batch' does not pool")
        about = self._about(digest, sums.kind, sums.scope, head)
        parts, checksum = encode_entry(about, sums.without(without).to(torch.float64), without)
        name = f"{_name(about)}-{checksum}{_SUFFIX}"
        with disk_errors(self.folder):
            make_folder(self.folder)
        write_atomically(self.folder / name, *parts)
        with disk_errors(self.folder):
            self._trim(name)

    @contextmanager
    def collect(
        self,
        model: nn.Module,
        *,
        kind: str = "normalized",
        scopes: Sequence[str] = ("head",),
        head: str | None = None,
        without: Collection[int] = (),
        examples: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[LedgerPass]:
        """Note the sums during a pass over the client's data that is made anyway, such as an evaluation.

            with ledger.collect(model) as forward:
                for images, labels in loader:
                    logits = forward(images, labels)

        The pass must go over exactly the data that requests are about, once. The head's sums cost little
        more than the forward pass, which this is; each further scope has a pass of its own. They are kept
        when the block ends without an exception; a disk that is full is logged, for nothing depends on them.

        Args:
            model: In eval mode.
            kind: See `fisher.fisher_diagonal`; not "batch".
            scopes: See `fisher.resolve_scope`.
            head: Name of the head, where it is not the last ``nn.Linear``.
            without: Classes whose sums are not to be kept: those forgotten before.
            examples: How many samples the whole pass has, if known: one that ends early is then not kept.
            device: Where the model is; None: that of its first parameter.

        Raises:
            FisherError: If the Fisher cannot be computed for this model, or the model changed in the block.
        """
        if kind == "batch":
            raise FisherError("kind 'batch' depends on how batches are formed and is not kept in a ledger")
        digest = model_digest(model)
        fitting = [s for s in dict.fromkeys(scopes) if self._fits(model, s, head)]
        collectors = [FisherCollector(model, kind=kind, scope=s, head=head, device=device) for s in fitting]
        noted = LedgerPass(model, collectors, device_of(model, device))
        with buffers_kept(model):
            yield noted
        if model_digest(model) != digest:
            raise FisherError("the model changed while its Fisher was collected: evaluate, and train apart")
        if examples not in (None, noted.examples):
            log.warning("%d of %s samples came by: none is noted", noted.examples, examples)
            return
        for collector in collectors:
            self._try_to_keep(digest, collector.result(), head, without)

    def answer(
        self,
        model: nn.Module,
        data: Callable[[], Iterable[Any]],
        *,
        classes: Collection[int],
        ignored: Collection[int] = (),
        kind: str = "normalized",
        scope: str = "head",
        head: str | None = None,
        device: torch.device | str | None = None,
        reference_share: float | int | None = None,
        keep: bool = True,
    ) -> tuple[FisherSums, bool]:
        """What a class request asks for: from the ledger where it holds, else from the data.

        Args:
            model: In eval mode.
            data: Called for the loader only when the ledger does not hold.
            classes: Classes to keep apart.
            ignored: Classes to leave out; none of ``classes``. All others are pooled under `types.REST`.
            kind: See `fisher.fisher_diagonal`, as for what follows.
            scope: Which parameters.
            head: Name of the head, where it is not the last ``nn.Linear``.
            device: Where the model is; None: that of its first parameter.
            reference_share: For what must be computed, which is then not kept: an entry is of all samples.
            keep: Whether to keep what is computed, which takes one accumulator for each class that occurs
                instead of one for each class asked for.

        Returns:
            The sums, and whether the ledger gave them.

        Raises:
            FisherError: If the Fisher cannot be computed.
        """
        held = self._find(model, kind, scope, head, classes, ignored)
        if held is not None:
            return held.pooled(classes, ignored), True
        loader: Iterable[Any] = data()
        if keep and reference_share is None and kind != "batch" and self._fits(model, scope, head):
            every = fisher_diagonal(model, loader, kind=kind, scope=scope, head=head, device=device)
            self._try_to_keep(model_digest(model), every, head, ignored)
            if every.sums:
                return every.pooled(classes, ignored), False
            loader = ()
        apart = [*classes, *ignored]
        sums = fisher_diagonal(
            model,
            loader,
            kind=kind,
            scope=scope,
            head=head,
            keep_classes=apart,
            device=device,
            reference_share=reference_share,
        )
        return sums.without(ignored), False

    def clear(self) -> int:
        """Remove every entry, as is due once an update has changed the model; returns how many there were.

        Raises:
            StoreError: If one cannot be removed.
        """
        entries = self._entries()
        for name in (*entries, *self._entries(suffix=_SUFFIX + PARTIAL)):
            self._files.remove(name)
        if entries:
            self._files.sync()
        return len(entries)

    # ------------------------------------------------------------------ files
    def _about(self, digest: str, kind: str, scope: str, head: str | None) -> dict[str, str]:
        return {"kind": kind, "scope": scope, "head": head or "", "model": digest, "data": self.data_key}

    def _find(
        self,
        model: nn.Module,
        kind: str,
        scope: str,
        head: str | None,
        apart: Collection[int] | None,
        without: Collection[int],
    ) -> FisherSums | None:
        about = self._about(model_digest(model), kind, scope, head)
        for name in self._entries(_name(about)):
            checksum = name.removesuffix(_SUFFIX).rpartition("-")[2]
            try:
                size = self._files.size(name)
                with self._files.reader(name) as file:
                    sums = read_entry(file, size, about, checksum, apart=apart, without=without)
                if sums is not None and sums.names != resolve_scope(model, scope, head):
                    raise FisherError("other parameters are in scope now")
            except (OSError, StoreError, FisherError) as e:
                log.warning("%s is not used: %s", self.folder / name, e)
                continue
            if sums is not None:
                return sums
        return None

    def _entries(self, start: str = "", suffix: str = _SUFFIX) -> list[str]:
        try:
            return [n for n in self._files.names() if n.startswith(start) and n.endswith(suffix)]
        except StoreError as e:
            log.warning("the ledger is not used: %s", e)
            return []

    def _trim(self, newest: str) -> None:
        """Remove what ``newest`` replaces: entries of its model, and of all but the last models."""
        key = newest.split("-")[0]
        dated = {n: (n != newest, -self._files.path(n).stat().st_mtime_ns) for n in self._entries(key)}
        models: dict[str, str] = {}
        for name in sorted(dated, key=lambda n: dated[n]):
            model = name.split("-")[1]
            if model in models or len(models) == self.keep:
                self._files.remove(name)
            else:
                models[model] = name
        for leftover in self._entries(suffix=_SUFFIX + PARTIAL):
            self._files.remove(leftover)
        self._files.sync()

    def _fits(self, model: nn.Module, scope: str, head: str | None) -> bool:
        names, own = resolve_scope(model, scope, head), dict(model.named_parameters(remove_duplicate=False))
        linear = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and head in (None, n)]
        need = 8 * sum(own[n].numel() for n in names) * (linear[-1].out_features if linear else 1)
        if need > self.max_bytes:
            log.warning("scope %r would take up to %d bytes, over max_bytes: it is not kept", scope, need)
        return need <= self.max_bytes

    def _try_to_keep(self, digest: str, sums: FisherSums, head: str | None, without: Collection[int]) -> None:
        if not sums.without(without).sums:
            return
        try:
            self.put(digest, sums, head=head, without=without)
        except StoreError as e:
            log.warning("the Fisher of scope %r is not kept: %s", sums.scope, e)


def _name(about: dict[str, Any]) -> str:
    """How the names of the entries for one kind, scope, head and model begin."""
    key = json.dumps([about["kind"], about["scope"], about["head"]]).encode()
    return f"{sha256(key).hexdigest()[:16]}-{about['model'][:32]}"
