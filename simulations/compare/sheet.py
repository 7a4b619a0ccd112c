"""A comparison laid out for a reader: columns in blocks, values as text, the best ones, footnotes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fl_unlearn.metrics.contract import Column
from simulations.compare.results import COST, ORIGINAL, RETRAIN, Comparison

BLOCKS: dict[str, tuple[str, ...]] = {
    "What it forgot": ("forget-", "held-forget-"),
    "What it kept": ("retain-", "held-retain-"),
    "What attacks find": ("probe", "relearn", "mia", "lira", "backdoor"),
    "Nearness to retraining": ("gap-", "tug-of-war", "zrf", "activation", "distance"),
    "Earlier checkpoints": ("checkpoints-",),
    "What it cost": tuple(c.key for c in COST),
}
"""Title of a block to how its columns' keys begin; any other column is in `OTHER`."""

OTHER = "Other measurements"
REFERENCES = (ORIGINAL, RETRAIN)
"""What the strategies are read against; not in the race themselves."""

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_DECIMALS = {"%": 1, "nats": 2, "bits": 3, "": 3}
_MOST_DECIMALS = 3
_LARGE = 1e7
DASH = "\N{EN DASH}"  # where there is no value


@dataclass(frozen=True)
class Block:
    """Columns that belong together."""

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Cell:
    """One strategy's value in one column.

    Attributes:
        mean: Over the seeds, in the column's own unit; None: there is no value.
        deviation: Over the seeds, in the same unit.
        text: The mean as it is shown, in the unit of `Sheet.units`; "" without one.
        spread: The deviation likewise; "" for fewer than two seeds.
        note: Why there is no value, or none for some seeds; "" where all is there.
        best: Whether it is marked as best of its column.
    """

    mean: float | None
    deviation: float = 0.0
    text: str = ""
    spread: str = ""
    note: str = ""
    best: bool = False

    @property
    def full(self) -> str:
        """Mean and deviation."""
        return f"{self.text} ± {self.spread}" if self.spread else self.text

    @property
    def shown(self) -> float:
        """The mean as a reader sees it."""
        return float(self.text.replace(",", ""))


class Sheet:
    """A comparison with every cell worked out once.

    Attributes:
        comparison: What is laid out.
        blocks: The columns, by theme.
        units: Key to the unit its values are shown in.
        racers: The strategies of which one is best in a column: no references, none that refused.
        notes: Footnote to its number, from 1 up, in the order of the table.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = c = comparison
        self.blocks = _blocks(c.columns)
        self.racers = [s for s in c.strategies if s not in REFERENCES and s not in c.refused]
        self.units: dict[str, str] = {}
        self._cells: dict[tuple[str, str], Cell] = {}
        for column in c.columns:
            self._fill(column)
        for label in c.labels:
            self._fill(Column(f"class-{label}", f"class {label}", "%", "retrained", ""), race=False)
        cells = [self._cells[s, k.key] for s in c.strategies for b in self.blocks for k in b.columns]
        self.notes = {note: n for n, note in enumerate(dict.fromkeys(x.note for x in cells if x.note), 1)}

    @property
    def has_yardstick(self) -> bool:
        """Whether there is a retrained model to compare with."""
        return RETRAIN in self.comparison.strategies and RETRAIN not in self.comparison.refused

    def cell(self, strategy: str, key: str) -> Cell:
        """The cell of a strategy in a column, or in ``class-<label>``."""
        return self._cells[strategy, key]

    def best(self, key: str) -> list[str]:
        """The strategies marked in a column."""
        return [s for s in self.racers if self._cells[s, key].best]

    def _fill(self, column: Column, race: bool = True) -> None:
        c, key = self.comparison, column.key
        means = {s: c.mean(s, key) for s in c.strategies}
        largest = max((abs(m[0]) for m in means.values() if m), default=0.0)
        factor, self.units[key] = _scale(column, largest)
        cells = {s: self._cell(s, column, factor, mean) for s, mean in means.items()}
        best = self._best(column, cells) if race else ()
        for s, cell in cells.items():
            marked = Cell(cell.mean, cell.deviation, cell.text, cell.spread, cell.note, s in best)
            self._cells[s, key] = marked

    def _cell(self, s: str, column: Column, factor: float, mean: tuple[float, float] | None) -> Cell:
        c = self.comparison
        if mean is None:
            return Cell(None, note=c.why(s, column.key))
        count, seeds = len(c.values(s, column.key)), len(c.seeds)
        note = "" if count == seeds else f"mean over {count} of {seeds} seeds: {c.why(s, column.key)}"
        decimals = _decimals(column, mean[0] * factor, mean[1] * factor)
        spread = _text(mean[1] * factor, decimals) if count > 1 else ""
        return Cell(*mean, _text(mean[0] * factor, decimals), spread, note)

    def _best(self, column: Column, cells: dict[str, Cell]) -> set[str]:
        """All that share the best value as a reader sees it: what looks alike is marked alike.

        One strategy alone is not best.
        """
        there = {s: cells[s].shown for s in self.racers if cells[s].mean is not None}
        if len(there) < 2:
            return set()
        if column.good == "retrained":
            reference = cells[RETRAIN] if self.has_yardstick else Cell(None)
            if reference.mean is None:
                return set()
            there = {s: abs(v - reference.shown) for s, v in there.items()}
        elif column.good == "high":
            there = {s: -v for s, v in there.items()}
        return {s for s, v in there.items() if math.isclose(v, min(there.values()), abs_tol=1e-9)}


def _blocks(columns: Iterable[Column]) -> list[Block]:
    found: dict[str, list[Column]] = {title: [] for title in (*BLOCKS, OTHER)}
    for column in columns:
        found[next((t for t, starts in BLOCKS.items() if column.key.startswith(starts)), OTHER)].append(
            column
        )
    return [Block(title, tuple(members)) for title, members in found.items() if members]


def _scale(column: Column, largest: float) -> tuple[float, str]:
    """By what values are multiplied, and the unit that they have then."""
    if column.unit == "%":
        return 100.0, "%"
    if column.unit == "bytes":
        size, unit = next(((s, u) for s, u in _BYTES if largest >= s), _BYTES[-1])
        return 1 / size, unit
    return 1.0, column.unit


def _decimals(column: Column, value: float, deviation: float) -> int:
    """How many decimals: the unit's; none of whole counts; of seconds and bytes, three digits' worth."""
    if column.unit == "steps" or column.key == "rounds":
        return 0 if value.is_integer() and deviation.is_integer() else 1
    if column.unit in _DECIMALS:
        return _DECIMALS[column.unit]
    size = math.floor(math.log10(abs(value))) if value else 0
    return min(max(2 - size, 0), _MOST_DECIMALS)


def _text(value: float, decimals: int) -> str:
    if abs(value) >= _LARGE:
        return f"{value:.2e}"
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: never "-0.0"
