"""Experiments side by side: what each method forgot, kept and took, and whether that is what we aim at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from simulations.inheritance.results import BEFORE, RETRAINED, Result

AIMS = {"single": (0.0, 0.5), "several": (0.5, 1.0)}
"""Of one class, and of several: most that may be left of what is forgotten on any model, and most that any
model may lose on the rest, in points."""

FASTER = 1.0
"""Most that forgetting may take of the owners' computing time for retraining the affected models, in %."""

CLAIMS = {"single": (0.0, 94.53), "several": (1.07, 84.77)}
"""The paper's (arXiv 2408.08493): accuracy on what is forgotten and on the rest, in %."""

EPOCHS = 100
"""Passes of one training in the paper's code."""

ROUNDING = 1e-9
"""A difference of two accuracies that are equal to within an aim is not exact."""


@dataclass(frozen=True)
class Line:
    """One method in one experiment, over all affected models. Accuracies in %, on test samples.

    Attributes:
        experiment: Its name.
        method: The method, or "retrained".
        kind: "single" or "several" classes.
        models: How many models are affected.
        forgotten_mean: Mean accuracy on what is forgotten; None: not measured.
        forgotten_worst: The highest.
        before: Mean accuracy on the rest before.
        after: The same afterwards.
        change_worst: The least after less before of any model, in points; negative is a loss.
        seconds: Owners' computing time.
        retrain_seconds: Owners' computing time for retraining the affected models; None: not retrained.
        ratio: The former in % of the latter.
        ratio_long: The same, had each retraining gone over its data `EPOCHS` times; extrapolated.
        refused: Why nothing was changed.
    """

    experiment: str
    method: str
    kind: str
    models: int
    forgotten_mean: float | None
    forgotten_worst: float | None
    before: float | None
    after: float | None
    change_worst: float | None
    seconds: float
    retrain_seconds: float | None
    ratio: float | None
    ratio_long: float | None
    refused: str = ""

    @property
    def forgets(self) -> bool | None:
        """Whether no model knows more of what is forgotten than we aim at; None: not measured."""
        most = AIMS[self.kind][0]
        return None if self.forgotten_worst is None else self.forgotten_worst <= most + ROUNDING

    @property
    def keeps(self) -> bool | None:
        """Whether no model loses more on the rest than we aim at; None: not measured."""
        most = AIMS[self.kind][1]
        return None if self.change_worst is None else -self.change_worst <= most + ROUNDING

    @property
    def faster(self) -> bool | None:
        """Whether the owners computed as little as we aim at; None: not retrained."""
        return None if self.ratio is None else self.ratio <= FASTER


def lines_of(name: str, result: Result) -> list[Line]:
    """A line for each method of an experiment, and for retraining where there was any."""
    lines = [_line(name, result, method, s.seconds, s.refused) for method, s in result.spent.items()]
    if result.retrain:
        lines.append(_line(name, result, RETRAINED, sum(result.retrain.values()), ""))
    return lines


def _line(name: str, result: Result, method: str, seconds: float, refused: str) -> Line:
    forgotten, before, after = [], [], []
    for model in result.affected:
        old, new = result.row(model, BEFORE), result.row(model, method)
        if new is not None and new.forget is not None:
            forgotten.append(100 * new.forget)
        if old is not None and new is not None and old.retained is not None and new.retained is not None:
            before.append(100 * old.retained)
            after.append(100 * new.retained)
    retrained = sum(result.retrain.values())
    long = sum(s * EPOCHS / result.passes[model] for model, s in result.retrain.items())
    return Line(
        name,
        method,
        "single" if len(result.forget) == 1 else "several",
        len(result.affected),
        fmean(forgotten) if forgotten else None,
        max(forgotten, default=None),
        fmean(before) if before else None,
        fmean(after) if after else None,
        min((b - a for a, b in zip(before, after, strict=True)), default=None),
        seconds,
        retrained if result.retrain else None,
        100 * seconds / retrained if retrained else None,
        100 * seconds / long if long and method != RETRAINED else None,
        refused,
    )


COLUMNS = (
    *("experiment", "method", "classes", "models", "forgotten: mean", "worst"),
    *("others: before", "after", "worst change", "owners, s", "retraining, s", "ratio"),
    *(f"at {EPOCHS} epochs", "forgets", "keeps", "faster"),
)


def markdown(results: Mapping[str, Result], failed: Mapping[str, str]) -> str:
    """The table of all experiments, what it shows and what it does not, and what failed.

    Args:
        results: Experiment to what it found.
        failed: Experiment to why it failed.
    """
    lines = [line for name, result in results.items() for line in lines_of(name, result)]
    out = ["# Forgetting in graphs of models", "", *_about(), ""]
    if lines:
        out += [row(COLUMNS), row(["---"] * 2 + ["---:"] * (len(COLUMNS) - 2))]
        out += [row(_cells(line)) for line in lines]
    if refused := [line for line in lines if line.refused]:
        out += ["", "Refused; these models were left as they were:", ""]
        out += [f"- {line.experiment}, {line.method}: {line.refused}" for line in refused]
    if failed:
        out += ["", "Failed:", "", *(f"- {name}: {why}" for name, why in failed.items())]
    return "\n".join(out) + "\n"


def _about() -> list[str]:
    single, several = CLAIMS["single"], CLAIMS["several"]
    return [
        "Accuracies in %, on test samples of the labels that each model has learned or inherited; mean and "
        "worst over the affected models. Nothing else is measured here: a class of which no sample is "
        "recognised may still be found in the features. Seconds are the owners' computing time (processor "
        "time on a CPU); the ratio, in %, is to retraining the affected models with this config's number of "
        f"epochs. Had they been retrained for {EPOCHS}, as the paper's were, it would be the one beside it: "
        "extrapolated, not measured.",
        "",
        f"The paper (arXiv 2408.08493) claims {single[0]:g} % on a single class and {single[1]} % on the "
        f"others, {several[0]} % and {several[1]} % for several, and 99 % less time than the alternatives, "
        "with models and data sets of full size; its code measures on training data.",
        "",
        f"*forgets*: at most {AIMS['single'][0]:.1f} % is left of one class, {AIMS['several'][0]} % of "
        f"several, on every affected model. *keeps*: no affected model loses more than {AIMS['single'][1]} "
        f"points, {AIMS['several'][1]:g} for several. *faster*: at most {FASTER:g} % of the computing time.",
    ]


def _cells(line: Line) -> list[str]:
    return [
        line.experiment,
        line.method + (" (refused)" if line.refused else ""),
        line.kind,
        str(line.models),
        *(number(v) for v in (line.forgotten_mean, line.forgotten_worst, line.before, line.after)),
        number(line.change_worst, sign=True),
        f"{line.seconds:.3g}",
        "-" if line.retrain_seconds is None else f"{line.retrain_seconds:.3g}",
        *("-" if ratio is None else f"{ratio:.3g}" for ratio in (line.ratio, line.ratio_long)),
        *(_verdict(line, met) for met in (line.forgets, line.keeps, line.faster)),
    ]


def _verdict(line: Line, met: bool | None) -> str:
    if line.method == RETRAINED:
        return ""  # the yardstick is not judged
    return {True: "yes", False: "no", None: "-"}[met]


def number(value: float | None, *, sign: bool = False) -> str:
    """A percentage with one decimal; "-" for none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.1f}"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
