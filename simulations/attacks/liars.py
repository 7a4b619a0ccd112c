"""The lies: each changes what clients answer, in the form that the server accepts.

A liar knows the protocol and the defence. It does not know what the honest clients answer. "Blunt" lies go as
far as plausible counts let them; "careful" ones keep within every bound that one answer is checked by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.types import REST

VICTIM = 1
"""The class that liars would have lost, besides the one that is to be forgotten."""

Sums = dict[int, dict[str, torch.Tensor]]
Lie = Callable[[RecordDict, RecordDict], None]
"""Changes a reply, given the question."""


@dataclass(frozen=True)
class Attack:
    """What liars do.

    Attributes:
        name: For tables.
        about: What they do, and what for.
        fisher: How they answer the Fisher phase.
        scores: How they answer in calibration, and in the verification.
    """

    name: str
    about: str
    fisher: Lie | None = None
    scores: Lie | None = None

    def tamper(self, liars: Sequence[int]) -> Callable[[int, Message, Message], None]:
        """For a grid: the clients ``liars`` lie."""

        def change(client: int, question: Message, reply: Message) -> None:
            if client not in liars:
                return
            for action, lie in ((records.FISHER, self.fisher), (records.SCORE, self.scores)):
                if question.metadata.message_type == f"query.{action}" and lie is not None:
                    lie(question.content, reply.content)

        return change


def fisher_lie(change: Callable[[Sums, dict[int, int]], None]) -> Lie:
    """A lie about the Fisher: ``change`` gets the sums and counts by group, and alters them."""

    def lie(question: RecordDict, reply: RecordDict) -> None:
        record = reply.config_records[records.HEAD]
        labels, counts = records.ints(record, "labels"), records.ints(record, "counts")
        held = dict(zip(labels, counts, strict=True))
        sums: Sums = {g: {} for g in labels}
        for key, tensor in records.to_state(reply.array_records[records.FISHER_ARRAYS]).items():
            group, _, name = key.partition("/")
            sums[int(group)][name] = tensor
        change(sums, held)
        flat = {f"{g}/{n}": t for g, own in sums.items() for n, t in own.items()}
        reply.array_records[records.FISHER_ARRAYS] = records.to_arrays(flat)
        record["counts"] = [held[g] for g in labels]

    return lie


def _asked(sums: Sums) -> int:
    return next(g for g in sums if g != REST)


def _inflate(sums: Sums, counts: dict[int, int]) -> None:
    label = _asked(sums)
    own = sums[label] if counts[label] else sums[REST]
    counts[label] = counts[label] or 20
    sums[label] = {n: 1000 * t for n, t in own.items()}


def _wreck(sums: Sums, counts: dict[int, int]) -> None:
    label, kept = _asked(sums), sums[REST]
    counts[label] = counts[label] or 20
    sums[label] = {n: 1e4 * float(t.max()) * torch.ones_like(t) for n, t in kept.items()}


def _wreck_carefully(sums: Sums, counts: dict[int, int]) -> None:
    """The class's own row and half of the victim's as large as the clip lets them be, the others zero.

    Half a row does more harm than a whole one, whose weights keep their proportions.
    """
    label, kept = _asked(sums), sums[REST]
    count = counts[label] = counts[label] or 20
    for name, tensor in kept.items():
        made = torch.zeros_like(tensor)
        column = tensor.sum(0) / (2 * counts[REST]) * count * (9 if tensor.ndim > 1 else 1)
        made[label], made[VICTIM] = column * 1.0001, column * 0.9999
        if tensor.ndim > 1:
            made[VICTIM] *= tensor[VICTIM] > tensor[VICTIM].median()
        sums[label][name] = made


def _empty_reference(sums: Sums, counts: dict[int, int]) -> None:
    """Nothing of what is kept matters, it says, and it has as many samples as are believed."""
    counts[REST] *= 15
    sums[REST] = {n: 1e-6 * t for n, t in sums[REST].items()}


def _huge_reference(sums: Sums, counts: dict[int, int]) -> None:
    sums[REST] = {n: 1e4 * t for n, t in sums[REST].items()}


def _claims(sums: Sums, counts: dict[int, int]) -> None:
    """Its retained samples, it says, are of the class: as many as are believed, and none is left."""
    label = _asked(sums)
    counts[label] = 15 * counts[REST]
    sums[label] = {n: 15 * t for n, t in sums[REST].items()}
    counts[REST], sums[REST] = 0, {n: torch.zeros_like(t) for n, t in sums[REST].items()}


def _scores(say: Callable[[list[int], list[int], list[int], set[int]], list[int]]) -> Lie:
    """A lie about candidates: ``say`` gives the correct samples by label, for every candidate."""

    def lie(question: RecordDict, reply: RecordDict) -> None:
        asked = question.config_records[records.HEAD]
        record: ConfigRecord = reply.config_records[records.HEAD]
        labels, total = records.ints(record, "labels"), records.ints(record, "total")
        width, told = len(labels), records.ints(record, "correct")
        candidates = 1 + len(records.list_of(asked, "thresholds"))
        out = []
        for i in range(0, len(told), width):
            plain = told[i : i + width]
            after = candidates == 1 or (i // width) % candidates
            out += say(labels, total, plain, set(records.ints(asked, "classes"))) if after else plain
        record["correct"] = out

    return lie


def _all_is_well(labels: list[int], total: list[int], plain: list[int], classes: set[int]) -> list[int]:
    return [0 if c in classes else n for c, n in zip(labels, total, strict=True)]


def _all_is_lost(labels: list[int], total: list[int], plain: list[int], classes: set[int]) -> list[int]:
    return [n if c in classes else 0 for c, n in zip(labels, total, strict=True)]


def _invent(question: RecordDict, reply: RecordDict) -> None:
    """All of its samples are of a class that hardly anybody holds, it says, and are lost."""
    asked, record = question.config_records[records.HEAD], reply.config_records[records.HEAD]
    label = 9 if 9 not in records.ints(asked, "classes") else 8
    samples = sum(records.ints(record, "total"))
    rows = len(records.ints(record, "correct")) // len(records.ints(record, "total"))
    candidates = 1 + len(records.list_of(asked, "thresholds"))
    record["labels"], record["total"], record["loss"] = [label], [samples], [0.0] * rows
    record["correct"] = [0 if candidates == 1 or i % candidates else samples for i in range(rows)]


ATTACKS = (
    Attack("none", "nobody lies"),
    Attack("inflated Fisher", "the forget Fisher times 1,000", fisher_lie(_inflate)),
    Attack(
        "wreck, well hidden",
        "a huge forget Fisher for every class, and: nothing is lost",
        fisher_lie(_wreck),
        _scores(_all_is_well),
    ),
    Attack(
        "aimed, well hidden",
        "within the bounds, at half the weights of one other class, and: nothing is lost",
        fisher_lie(_wreck_carefully),
        _scores(_all_is_well),
    ),
    Attack(
        "empty reference",
        "what is kept does not matter, of 15 times the samples",
        fisher_lie(_empty_reference),
    ),
    Attack("huge reference", "what is kept matters 10,000 times as much", fisher_lie(_huge_reference)),
    Attack("claimed class", "all its samples, times 15, are of the class", fisher_lie(_claims)),
    Attack("veto", "every candidate loses all and forgets nothing", None, _scores(_all_is_lost)),
    Attack("invented veto", "the same, of a class that one other holds", None, _invent),
)
"""All attacks, first none."""
