"""Models that a client keeps: in files it registers, and in ``context.state``. Each gets each update once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fl_unlearn.copies import CopyRegistry
from fl_unlearn.copies_book import FAILED, Receipt
from fl_unlearn.copy_file import CopyError, ForeignCopyError, fit
from fl_unlearn.dampen import DampeningUpdate, change_flat
from fl_unlearn.flower import records
from fl_unlearn.flower.forgotten import read_updates
from fl_unlearn.flower.naming import partition_name
from fl_unlearn.types import AnswerError, Signature

FolderFn = Callable[[Context], Path | str]

_APPLIED = "unlearn.applied"
_RECEIVED = "unlearn.received"
_MOST_RECEIPTS = 100


class OwnCopies:
    """Models that clients keep on their disks: last local models, personalised layers.

        copies = OwnCopies("/var/lib/my-project")
        attach(app, model=..., data=..., copies=copies)

        torch.save(model.state_dict(), path)      # in the training handler
        copies.keep(context, path, message)       # each time that it was saved

    They are remembered in a folder of the client's own, so that a client that is started anew still knows
    them. When a request is committed they get its update, each exactly once, and the client answers with
    digests before and after. Safetensors files and state dicts that ``torch.save`` wrote are understood.

    Args:
        folder: Where to remember them: a folder, below which each client gets one of its own, or a function
            that gives a client's own. One for each federation: an update changes all copies in it.
        client_name: Gives a client's lasting name; default its partition id.
    """

    def __init__(
        self, folder: str | Path | FolderFn, *, client_name: Callable[[Context], str] = partition_name
    ) -> None:
        self._folder, self._client_name = folder, client_name

    def keep(
        self,
        context: Context,
        path: str | Path,
        message: Message | None = None,
        *,
        name: str | None = None,
        personal: bool = False,
    ) -> None:
        """Register a model that was just saved; call it each time.

        What the message tells of its model decides which updates the copy still needs. An update that came
        while the model was being trained is applied to the copy now.

        Args:
            context: The client's Context.
            path: A safetensors file or a state dict that ``torch.save`` wrote, of all layers or some.
            message: The training message that the saved model goes on from. May be left out in an app built
                with ``client_fn``, for the newest one.
            name: What receipts call the copy: they go to the server. Default the file's name.
            personal: The file's layers go on from what the file held before, not from the message's model.

        Raises:
            CopyError: If there is no such file, or its content is of another kind; or no message is known; or
                the folder remembers another federation's copies.
            AnswerError: If the message tells nonsense of its model.
            StoreError: If the copy cannot be remembered.
        """
        if message is not None:
            has = read_updates(message.content)
        elif (record := context.state.config_records.get(_RECEIVED)) is not None:
            has = [str(d) for d in records.list_of(record, "updates")]
        else:
            raise CopyError(
                "which model the copy goes on from is not known: give the training message, as "
                "keep(context, path, message), or use unlearning_mod(..., copies=...)"
            )
        self.registry(context).add(Path(path), has, name=name, personal=personal, run=context.run_id)

    def drop(self, context: Context, path: str | Path) -> None:
        """Say that a copy is no longer kept, after removing the file; one that is not known is passed over.

        Raises:
            StoreError: If that cannot be noted.
        """
        self.registry(context).remove(Path(path))

    def registry(self, context: Context) -> CopyRegistry:
        """What a client remembers of its copies."""
        if callable(self._folder):
            return CopyRegistry(Path(self._folder(context)).expanduser().absolute())
        own = f"client-{quote(self._client_name(context), safe='')}"
        return CopyRegistry(Path(self._folder).expanduser().absolute() / own)


def note_received(message: Message, context: Context) -> None:
    """Note what a training message tells of its model, where training code does not see messages."""
    context.state[_RECEIVED] = ConfigRecord({"updates": read_updates(message.content)})


def apply_everywhere(
    update: DampeningUpdate,
    context: Context,
    copies: OwnCopies | None,
    model: Callable[[], Signature],
    store: str = "",
) -> list[Receipt]:
    """Apply an update to every model that a client keeps.

    Args:
        update: The update.
        context: The client's Context.
        copies: Its registered files, if it keeps any.
        model: Gives the tensors of the project's model.
        store: Id of the server's store.

    Raises:
        StoreError: If the registered copies cannot be told.
    """
    if copies is None and not context.state.array_records:
        return []
    signature = model()
    receipts = apply_to_state(update, context, signature)
    if copies is None:
        return receipts
    return receipts + copies.registry(context).apply(update, signature, store=store, run=context.run_id)


def apply_to_state(update: DampeningUpdate, context: Context, model: Signature) -> list[Receipt]:
    """Apply an update to the models in ``context.state``, which may hold other things too."""
    marks = context.state.config_records.get(_APPLIED, ConfigRecord())
    values: dict[str, Any] = {k: [str(v) for v in records.list_of(marks, k)] for k in marks}
    applied, failing = values.setdefault("digests", []), f"failed.{update.digest}"
    # Told again, it is for what failed: what came since goes on from a model that has the update.
    names = values.pop(failing, []) if update.digest in applied else list(context.state.array_records)
    receipts, failed = [], []
    for name in names:
        if (arrays := context.state.array_records.get(name)) is None:
            continue
        status = "applied"
        try:
            context.state[name] = _changed(arrays, update, model)
        except ForeignCopyError as e:
            status = f"skipped: no copy of this model: {e}"
        except (CopyError, AnswerError) as e:
            status = FAILED + str(e)
            failed.append(name)
        receipts.append({"copy": f"context.state[{name[:60]!r}]", "status": status[:300]})
    if failed:
        values[failing] = failed
    values["digests"] = list(dict.fromkeys([*applied, update.digest]))
    context.state[_APPLIED] = ConfigRecord(values)
    return receipts


def _changed(arrays: ArrayRecord, update: DampeningUpdate, model: Signature) -> ArrayRecord:
    state = records.to_state(arrays)
    found = fit(update, records.signature(arrays), model)
    if not found.changes:
        raise ForeignCopyError("it holds none of the tensors that the update changes")
    for name, change in found.changes.items():
        flat = state[name].flatten()
        change_flat(flat, change)
        state[name] = flat.reshape(state[name].shape)
    return records.to_arrays(state)


def answer(client: str, update: DampeningUpdate, receipts: Sequence[Receipt], seconds: float) -> RecordDict:
    """A client's answer to an update; if it could not get everywhere, it says so and will be sent again."""
    # Not as ASCII: escapes would use up the room that the server gives to each.
    texts = [json.dumps(r, sort_keys=True, ensure_ascii=False) for r in shortened(receipts)]
    why = failures(receipts)
    said = {"digest": update.digest, "receipts": texts, "seconds": seconds}
    extra = {} if why is None else {"unsettled": why}
    return RecordDict({records.HEAD: records.head(client=client, **said, **extra)})


def failures(receipts: Iterable[Receipt]) -> str | None:
    """One sentence on the copies that do not have the update they were just to get; None if all have it."""
    failed = [r for r in receipts if r["status"].startswith(FAILED) and "update" not in r]
    if not failed:
        return None
    first = f"{failed[0]['copy']}: {failed[0]['status'].removeprefix(FAILED)}"
    return f"{len(failed)} of its copies could not be dampened ({first})"


def shortened(receipts: Sequence[Receipt]) -> list[Receipt]:
    """As many receipts as the server takes of one client, what failed first, the rest as a count."""
    ordered = sorted(receipts, key=lambda r: not r["status"].startswith(FAILED))
    if len(ordered) <= _MOST_RECEIPTS:
        return ordered
    rest = ordered[_MOST_RECEIPTS - 1 :]
    counts = Counter(r["status"].partition(":")[0].partition(";")[0] for r in rest)
    said = ", ".join(f"{status}: {number}" for status, number in sorted(counts.items()))
    return [*ordered[: _MOST_RECEIPTS - 1], {"copy": f"{len(rest)} more", "status": said}]
