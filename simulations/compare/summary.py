"""What a comparison says, in plain language: what was asked and measured, and who is near retraining.

It never says that data is gone: measurements say what they found, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_unlearn.metrics.contract import Column
from fl_unlearn.types import ForgetRequest
from simulations.compare.results import ORIGINAL, RETRAIN, Comparison
from simulations.compare.sheet import Sheet

MASK = "mask"
BEYOND = ("probe-forget", "relearn", "mia", "lira")
"""How the keys of columns begin that look for what a model knows, not for what it answers."""

YARDSTICK = (
    "Retraining without the data is the yardstick: good is a value like the retrained model's, which is "
    "seldom 0."
)
NO_YARDSTICK = (
    "Retraining without the data would be the yardstick, but there is no retrained model here: values can "
    "only be held against the model before forgetting, and none is marked but the lowest cost."
)
CAVEAT = (
    "A measurement says what it found. None of these proves that nothing of the data is left in a model, and "
    "differences smaller than the deviation over seeds say little."
)


@dataclass(frozen=True)
class Summary:
    """What a reader should take away.

    Attributes:
        asked: What was to be forgotten, and where.
        measured: What was measured, what was not, and how to read it.
        beyond: Who is nearer to retraining than the trivial yardstick, beyond accuracy.
        nearer: The same, strategy by strategy: in which columns.
        nearest: Title of a column, and which strategies are best in it, with their value and the retrained.
        refused: Strategy and why it did not run, or changed nothing.
    """

    asked: str
    measured: list[str]
    beyond: list[str]
    nearer: list[tuple[str, str]]
    nearest: list[tuple[str, str]]
    refused: list[tuple[str, str]]


def summarise(sheet: Sheet) -> Summary:
    """Say in words what the sheet shows."""
    c = sheet.comparison
    beyond, nearer = _beyond(sheet)
    return Summary(
        f"{_asked(c)} {_where(c)}",
        [*_measured(sheet), YARDSTICK if sheet.has_yardstick else NO_YARDSTICK, CAVEAT],
        beyond,
        nearer,
        [(k.title, found) for b in sheet.blocks for k in b.columns if (found := _nearest(sheet, k))],
        list(c.refused.items()),
    )


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _asked(c: Comparison) -> str:
    request = ForgetRequest.from_json(c.request)
    clients = f"client{'s' if len(request.clients) > 1 else ''} {listed(request.clients)}"
    if request.kind == "samples":
        parts = [
            f"{len(rows)} sample{'s' if len(rows) > 1 else ''} of client {client}"
            for client, rows in request.samples.items()
        ]
        return f"To be forgotten: {listed(parts)}."
    if request.kind == "client":
        return f"To be forgotten: everything of {clients}."
    what = f"class{'es' if len(request.classes) > 1 else ''} {listed([str(k) for k in request.classes])}"
    return f"To be forgotten: {what}, of {clients if request.clients else 'every client that holds it'}."


def _where(c: Comparison) -> str:
    get = c.setting.get
    parts = [
        f"{get('dataset', 'unnamed data')}, {get('clients', '?')} clients, {get('rounds', '?')} rounds",
        f"seeds {listed([str(s) for s in c.seeds])}" if len(c.seeds) > 1 else "one seed only",
    ]
    said = f"Trained on {'; '.join(parts)}."
    if get("backdoor-client"):
        share = f"{100 * float(get('backdoor-share', 0)):.0f} %"
        said += f" A trigger was planted in {share} of client {get('backdoor-client')}'s pictures."
    return said


def _measured(sheet: Sheet) -> list[str]:
    columns = [k for b in sheet.blocks for k in b.columns if k.good == "retrained"]
    there = [k for k in columns if any(sheet.cell(s, k.key).mean is not None for s in sheet.racers)]
    absent = [k for k in columns if k not in there]
    beyond = [k for k in there if k.key.startswith(BEYOND)]
    said = []
    if beyond:
        said.append(f"Measured beyond accuracy and loss: {listed([k.title for k in beyond])}.")
    elif there:
        said.append(
            "Nothing was measured beyond what the models answer: by these numbers alone, no strategy here "
            "can be said to have removed what the model knows."
        )
    if absent:
        said.append(f"Not measured for any strategy: {listed([k.title for k in absent])}.")
    return said


def _nearest(sheet: Sheet, column: Column) -> str:
    best = sheet.best(column.key)
    if not best:
        return ""
    unit = sheet.units[column.key]
    unit = f" {unit}" if unit else ""
    values = list(dict.fromkeys(sheet.cell(s, column.key).text for s in best))
    said = f"{listed(best)}: {' or '.join(values)}{unit}"
    if column.good != "retrained":
        return said
    return f"{said}; retrained {sheet.cell(RETRAIN, column.key).text}{unit}"


# --------------------------------------------------------------------------- beside the trivial yardstick
def _beyond(sheet: Sheet) -> tuple[list[str], list[tuple[str, str]]]:
    """Who is nearer to retraining than ``mask``, or than the original where no mask was run."""
    if not sheet.has_yardstick:
        return [], []
    columns = [
        k for b in sheet.blocks for k in b.columns if k.key.startswith(BEYOND) and k.good == "retrained"
    ]
    yard = MASK if MASK in sheet.racers else ORIGINAL
    telling = [k for k in columns if _tells(sheet, yard, k.key)]
    name = MASK if yard == MASK else "the model before forgetting"
    said = []
    if yard == MASK:
        said.append(
            "mask only hides the answer: everything the model knew is still in it. What is no nearer to "
            "retraining than mask beyond accuracy (probe, relearning, membership inference) has not been "
            "shown to forget more."
        )
    elif columns:
        said.append(
            "mask was not run, or refused, so strategies are held against the model before forgetting."
        )
    if telling:
        said.append(f"Columns beyond accuracy that tell {name} from retraining: {_titles(telling)}.")
        placed, nearer = _placed(sheet, yard, name, telling)
        return said + placed, nearer
    if columns and len(sheet.comparison.seeds) < 2:
        said.append("One seed only: without a deviation, differences beyond accuracy are not judged.")
    elif columns:
        said.append(f"No column beyond accuracy tells {name} from retraining by more than the deviation.")
    return said, []


def _placed(
    sheet: Sheet, yard: str, name: str, telling: list[Column]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Every other strategy's place beside the yardstick, and the columns in which it is nearer."""
    counted: dict[tuple[int, int], list[str]] = {}
    nearer = []
    for s in sheet.racers:
        if s == yard:
            continue
        there = [k for k in telling if sheet.cell(s, k.key).mean is not None]
        better = [k for k in there if _nearer(sheet, s, yard, k.key)]
        counted.setdefault((len(better), len(there)), []).append(s)
        if better:
            nearer.append((s, _titles(better)))
    unknown = counted.pop((0, 0), [])
    none = [s for (better, _), names in counted.items() if not better for s in names]
    some = {pair: names for pair, names in counted.items() if pair[0]}
    said = []
    if none:
        said.append(f"No nearer to retraining than {name} in any of these: {listed(none)}.")
    if some:
        order = sorted(some, key=lambda pair: (-pair[0] / pair[1], -pair[1]))
        parts = [f"in {better} of {there}: {listed(some[better, there])}" for better, there in order]
        said.append(f"Nearer than {name}, by more than the deviation over seeds, {'; '.join(parts)}.")
    if unknown:
        said.append(f"Without a value in these columns: {listed(unknown)}.")
    return said, nearer


def _titles(columns: Sequence[Column]) -> str:
    return listed([k.title for k in columns])


def _gap(sheet: Sheet, strategy: str, key: str) -> float | None:
    mean, retrained = sheet.cell(strategy, key).mean, sheet.cell(RETRAIN, key).mean
    return None if mean is None or retrained is None else abs(mean - retrained)


def _judged(sheet: Sheet, strategy: str, key: str) -> bool:
    """Whether there are seeds enough for a deviation."""
    return len(sheet.comparison.values(strategy, key)) > 1


def _tells(sheet: Sheet, yard: str, key: str) -> bool:
    """Whether the yardstick is farther from retraining than the seeds are from one another."""
    if yard not in sheet.comparison.strategies:
        return False
    gap = _gap(sheet, yard, key)
    if not all(_judged(sheet, s, key) for s in (yard, RETRAIN)):
        return False
    return gap is not None and gap > max(sheet.cell(s, key).deviation for s in (yard, RETRAIN))


def _nearer(sheet: Sheet, strategy: str, yard: str, key: str) -> bool:
    gap, other = _gap(sheet, strategy, key), _gap(sheet, yard, key)
    assert gap is not None
    assert other is not None
    if not all(_judged(sheet, s, key) for s in (strategy, yard)):
        return False
    return other - gap > max(sheet.cell(s, key).deviation for s in (strategy, yard))
