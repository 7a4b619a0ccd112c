"""A client's own data, as a question of the server parts it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from fl_unlearn.batches import filled, take_rows
from fl_unlearn.flower import records
from fl_unlearn.flower.targets import LEFT_OUT, NAMED, Keys, Share
from fl_unlearn.types import MeasureError, RequestError

Batches = list[tuple[Any, Tensor]]


def groups(client: str, record: ConfigRecord) -> tuple[list[int], list[int]]:
    """The classes that a question asks of this client, and those whose samples it leaves out."""
    named = records.list_of(record, "clients")
    classes = records.ints(record, "classes") if not named or client in named else []
    return classes, sorted(set(records.ints(record, "ignored")) - set(classes))


def split(data: Any) -> tuple[Any, ...]:
    """(training, held-out) when ``data`` is a pair of loaders, else (training,); held-out may be None.

    Raises:
        MeasureError: If there is no training loader.
    """
    parts: tuple[Any, ...] = (data,)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], torch.Tensor):
        parts = data if data[1] is not None else data[:1]
    if parts[0] is None:
        raise MeasureError(
            "`data` gave None for this client's training loader; return a loader, an empty list where a "
            "client has no training samples, or (training, held-out)"
        )
    return parts


def part(
    batches: Iterable[Any], classes: Collection[int], *, named: bool = True
) -> Iterator[tuple[Any, Tensor]]:
    """The samples of the named classes, or those of all others, in their batches; empty batches are left out.

    Args:
        batches: Batches as `batches.unpack` takes them.
        classes: Labels.
        named: Whether these are wanted, or all others.
    """
    labels = torch.tensor(sorted(classes), dtype=torch.int64)
    for x, y in filled(batches):
        rows = (torch.isin(y, labels.to(y.device)) == named).nonzero().squeeze(1)
        if len(rows):
            yield take_rows(x, rows), y[rows]


@dataclass(frozen=True)
class OwnData:
    """A client's samples, as one question names them.

    Attributes:
        held_out: Loader of held-out samples; None: it has none.
        asks: Whether the question is of a request for clients or samples.
        named: What such a request names of this client.
        left_out: What earlier ones named of it: neither to be forgotten nor kept.
        ignored: Classes whose samples are left out.
        expected: How many training samples there must be, as there are keys of them; None: not known.
    """

    training: Any
    held_out: Any
    asks: bool
    named: Share
    left_out: Share
    ignored: tuple[int, ...]
    expected: int | None = None

    def kept(self) -> Any:
        """The training samples without those left out: the loader itself where there are none."""
        return _Part(self, wanted=None) if self.left_out else self.training

    def forget(self) -> Iterable[Any]:
        """The named samples, less those of ignored classes."""
        return _Part(self, wanted=True)

    def rest(self) -> Iterable[Any]:
        """The samples that are neither named nor left out, less those of ignored classes."""
        return _Part(self, wanted=False)

    def held(self) -> Iterable[Any]:
        """Held-out samples, less those of ignored classes."""
        return part(self.held_out if self.held_out is not None else (), self.ignored, named=False)


class _Part:
    """Some of a client's training samples, in their batches; can be gone through repeatedly."""

    def __init__(self, own: OwnData, wanted: bool | None) -> None:
        self.own, self.wanted = own, wanted

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        own, count = self.own, 0
        ignored = torch.tensor(own.ignored if self.wanted is not None else (), dtype=torch.int64)
        for x, y in filled(own.training):
            named, left = (_among(share, count, y) for share in (own.named, own.left_out))
            chosen = named if self.wanted else ~left if self.wanted is None else ~named & ~left
            rows = (chosen & ~torch.isin(y, ignored.to(y.device))).nonzero().squeeze(1)
            count += len(y)
            if len(rows):
                yield take_rows(x, rows), y[rows]
        if own.expected not in (None, count):
            raise RequestError(
                f"`sample_keys` gives {own.expected} keys, and there are {count} training samples; it must "
                "give one key a sample, in the order of the training loader's data set"
            )
        top = max((*own.named.positions, *own.left_out.positions), default=-1)
        if top >= count:
            raise RequestError(
                f"there are {count} training samples, 0 to {count - 1}, and sample {top} is named"
            )


def _among(share: Share, start: int, y: Tensor) -> Tensor:
    """Which rows of a batch that begins at position ``start`` are named."""
    if share.all:
        return torch.ones_like(y, dtype=torch.bool)
    positions = torch.tensor(share.positions, dtype=torch.int64, device=y.device)
    return torch.isin(torch.arange(start, start + len(y), device=y.device), positions)


def own_data(data: Any, record: ConfigRecord, client: str, sample_keys: Callable[[], Keys] | None) -> OwnData:
    """This client's data, parted as the question asks.

    Args:
        data: What the project's ``data`` gave.
        record: The question.
        client: The client's name.
        sample_keys: Gives its keys of its training samples; None: it has none.

    Raises:
        RequestError: If what is named cannot be found, or the order of the samples is not known.
        MeasureError: If there is no training loader.
        AnswerError: If the question makes no sense.
    """
    parts, asks = split(data), NAMED in record
    named, left = (Share.from_text(record.get(key, "{}")) for key in (NAMED, LEFT_OUT))
    ignored = tuple(groups(client, record)[1]) if "ignored" in record else ()
    training = parts[0]
    if asks or left:
        ordered = in_order(training)
        if ordered is None and (named.positions or named.keys or left.positions or left.keys):
            raise RequestError(
                "single samples are named, and this client's training loader draws them in an order of its "
                "own; let `data` return a loader without shuffling, or a DataLoader(..., shuffle=True)"
            )
        training = training if ordered is None else ordered
    keys, expected = None, None
    if named.keys or left.keys:
        keys = sample_keys() if sample_keys is not None else None
        expected = len(keys) if isinstance(keys, Sequence) else None
        named, left = (share.located(keys) for share in (named, left))
    held_out = parts[1] if len(parts) > 1 else None
    return OwnData(training, held_out, asks, named, left, ignored, expected)


def in_order(loader: Any) -> Any:
    """A loader's samples in the order of its data set, every time; None where there is no such order.

    A torch ``DataLoader`` that shuffles, or leaves out a last batch, is replaced by one that does not. What
    is no ``DataLoader`` is taken to have an order; what can be gone through only once is kept in memory.
    """
    if not isinstance(loader, DataLoader):
        return list(loader) if isinstance(loader, Iterator) else loader
    if isinstance(loader.dataset, IterableDataset):
        return loader
    inner, size = loader.batch_sampler, loader.batch_size
    if inner is not None and type(inner) is not BatchSampler:
        return None
    sampler = loader.sampler if inner is None else inner.sampler
    whole = type(sampler) is SequentialSampler
    if type(sampler) is RandomSampler:
        whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    if not whole:
        return None
    return DataLoader(
        loader.dataset,
        size if inner is None else inner.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )
