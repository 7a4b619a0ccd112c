"""A picture of every scenario's graph: which model inherits from which, and what each has learned.

    python -m simulations.figures.dags --out DIR                     # all scenarios, and an overview
    python -m simulations.figures.dags --out DIR diamond --classes 10

Writes a PNG and a PDF for each scenario, an overview of all that are drawn, and ``dags.csv`` with the models.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerPatch
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.patheffects import withStroke

from fl_unlearn.figures import BLACK, BLUE, GREY, VERMILLION
from fl_unlearn.plan import PlannedModel
from simulations.figures.dag_layout import RADIUS, Place, bend, curve, graph_of, places, word_places
from simulations.scenarios import SCENARIOS, Scenario, ScenarioError, build
from simulations.scenarios.labels import ranges

STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "initial": ("initial, not trained", {"fc": "white", "ec": GREY, "ls": "--", "lw": 1.2}),
    "clean": ("clean: never learned it", {"fc": "#D6E8F5", "ec": BLUE, "lw": 1.2}),
    "root": ("root: first to learn it", {"fc": VERMILLION, "ec": BLACK, "lw": 2.4}),
    "affected": ("affected: inherits it", {"fc": "#F3B98F", "ec": VERMILLION, "lw": 1.2}),
}
"""What a model can be, with the legend's words and its look; borders repeat what colour says."""

WEIGHED = 20
"""Most models up to which every arrow carries its weight."""

INCH, SMALL_INCH = 0.85, 0.5
"""Size of a unit of the picture, alone and in the overview."""

_MARGIN = (0.75, 0.75, 0.55, 0.85)  # left, right, above, below the outer models' centres, in units
_PAGE, _GAP, _TITLE, _LINE = 10.2, 0.35, 0.62, 0.19  # inches


@dataclass(frozen=True)
class Drawing:
    """What a picture shows.

    Attributes:
        scenario: The scenario.
        at: Model to its place.
        state: Model to one of `STATES`.
        bends: Parent and child to how much the arrow between them is bent.
        words: Model to where it is written whose data it was trained on.
    """

    scenario: Scenario
    at: dict[str, Place]
    state: dict[str, str]
    bends: dict[tuple[str, str], float]
    words: dict[str, Place]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of all that is drawn, in units."""
        left, right, above, below = _MARGIN
        xs, ys = zip(*self.at.values(), strict=True)
        arrows = [p for (a, b), rad in self.bends.items() for p in curve(self.at[a], self.at[b], rad)]
        low, high = min([*ys, *(y + 0.4 for _, y in arrows)]), max([*ys, *(y - 0.4 for _, y in arrows)])
        return min(xs) - left, max(xs) + right, low - below, high + above

    def inches(self, unit: float) -> tuple[float, float]:
        """Width and height."""
        left, right, bottom, top = self.box
        return (right - left) * unit, (top - bottom) * unit


def lay_out(scenario: Scenario) -> Drawing:
    """Where everything of a scenario is drawn."""
    graph = graph_of(scenario.models)
    at = places(graph)
    affected, roots = set(scenario.affected()), set(scenario.roots())

    def state(model: PlannedModel) -> str:
        if model.name in affected:
            return "root" if model.name in roots else "affected"
        return "clean" if model.owner or model.parents else "initial"

    states = {model.name: state(model) for model in scenario.models}
    bends = {(a, b): bend(a, b, at) for a, b in graph.edges}
    return Drawing(scenario, at, states, bends, word_places(at, bends))


def draw(drawing: Drawing, ax: Axes, unit: float) -> None:
    """Draw a scenario's graph; ``unit`` is the size of a unit in inches, which the letters follow."""
    left, right, bottom, top = drawing.box
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")
    letters = unit / INCH
    halo = [withStroke(linewidth=2.5 * letters, foreground="white")]
    circles = {}
    for model in drawing.scenario.models:
        (x, y), state = drawing.at[model.name], drawing.state[model.name]
        look = {**STATES[state][1]}
        look["lw"] *= letters
        circles[model.name] = ax.add_patch(Circle((x, y), RADIUS, zorder=3, **look))
        strong: dict[str, Any] = {"color": "white", "weight": "bold"} if state == "root" else {"color": BLACK}
        centre: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 5}
        ax.text(x, y, model.name, fontsize=10 * letters, **centre, **strong)
        ax.text(
            *drawing.words[model.name], _trained(model), fontsize=7.5 * letters, path_effects=halo, **centre
        )
    for model in drawing.scenario.models:
        for parent, weight in model.parents.items():
            rad = drawing.bends[parent, model.name]
            hit = drawing.state[parent] in ("root", "affected")
            arrow = FancyArrowPatch(
                drawing.at[parent],
                drawing.at[model.name],
                patchA=circles[parent],
                patchB=circles[model.name],
                connectionstyle=f"arc3,rad={rad}",
                arrowstyle="-|>",
                mutation_scale=11 * letters,
                color=VERMILLION if hit else GREY,
                lw=1.2 * letters,
                zorder=2,
            )
            ax.add_patch(arrow)
            if weight != 1 and len(drawing.at) <= WEIGHED:
                x, y = curve(drawing.at[parent], drawing.at[model.name], rad)[12]
                text = str(Fraction(weight).limit_denominator(100))
                ax.text(
                    x, y, text, fontsize=7.5 * letters, path_effects=halo, zorder=4, ha="center", va="center"
                )


def _trained(model: PlannedModel) -> str:
    if model.owner is None:
        return "mean" if len(model.parents) > 1 else ""
    return model.owner if model.trains == "all" else f"{model.owner}, {model.trains}"


def caption(scenario: Scenario, models: int) -> list[str]:
    """What is to be forgotten, who owns which classes, and what the arrows weigh if they do not say it."""
    same: dict[tuple[int, ...], list[str]] = {}
    for owner, labels in scenario.labels.items():
        same.setdefault(labels, []).append(owner)
    lines = [f"To forget: {_classes(scenario.forget)}."]
    lines += [f"{', '.join(owners)}: {_classes(labels)}" for labels, owners in same.items()]
    weights = {w for model in scenario.models for w in model.parents.values()} - {1.0}
    if weights and models > WEIGHED:
        lines.append("Of two parents, each weighs 1/2." if weights == {0.5} else "Weights are in dags.csv.")
    return lines


def _classes(labels: Sequence[int]) -> str:
    text = f"{'class' if len(labels) == 1 else 'classes'} {ranges(labels)}"
    return text if len(text) <= 60 else f"{len(labels)} classes"


def picture(scenario: Scenario) -> tuple[Figure, Drawing]:
    """One scenario's picture, with its classes and a legend."""
    drawing = lay_out(scenario)
    lines = caption(scenario, len(drawing.at))
    width, height = drawing.inches(INCH)
    page = max(width, 7.4)
    below = _LINE * len(lines) + 0.5
    figure = _figure(page, height + _TITLE + below)
    total = height + _TITLE + below
    draw(
        drawing,
        figure.add_axes(((page - width) / 2 / page, below / total, width / page, height / total)),
        INCH,
    )
    figure.text(0.15 / page, 1 - 0.1 / total, scenario.name, fontsize=12, weight="bold", va="top")
    figure.text(0.15 / page, 1 - 0.34 / total, scenario.about, fontsize=9, va="top")
    for i, line in enumerate(lines):
        figure.text(0.15 / page, (below - _LINE * (i + 0.2)) / total, line, fontsize=8.5, va="top")
    _legend(figure, [drawing])
    return figure, drawing


def overview(scenarios: Sequence[Scenario]) -> Figure:
    """All graphs on one page, as large as one another."""
    drawings = [lay_out(scenario) for scenario in scenarios]
    shelves: list[list[Drawing]] = []
    for drawing in drawings:
        fits = (s for s in shelves if sum(map(_slot, [*s, drawing])) <= _PAGE)
        if (shelf := next(fits, None)) is None:
            shelves.append(shelf := [])
        shelf.append(drawing)
    heights = [max(d.inches(SMALL_INCH)[1] for d in shelf) + _TITLE for shelf in shelves]
    total = sum(heights) + 0.5
    figure = _figure(_PAGE, total)
    top = total
    for shelf, height in zip(shelves, heights, strict=True):
        x = _GAP / 2
        for drawing in shelf:
            w, h = drawing.inches(SMALL_INCH)
            place = (x / _PAGE, (top - _TITLE - h) / total, w / _PAGE, h / total)
            draw(drawing, figure.add_axes(place), SMALL_INCH)
            name, gone = drawing.scenario.name, _classes(drawing.scenario.forget)
            figure.text(x / _PAGE, (top - 0.12) / total, name, fontsize=11, weight="bold", va="top")
            figure.text(x / _PAGE, (top - 0.34) / total, f"to forget: {gone}", fontsize=8.5, va="top")
            x += _slot(drawing)
        top -= height
    _legend(figure, drawings)
    return figure


def _slot(drawing: Drawing) -> float:
    """Width in inches that a graph takes in the overview, its heading included."""
    return max(drawing.inches(SMALL_INCH)[0], 2.4) + _GAP


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, drawings: Sequence[Drawing]) -> None:
    present = {state for drawing in drawings for state in drawing.state.values()}
    handles = [Circle((0, 0), label=text, **look) for s, (text, look) in STATES.items() if s in present]
    style: dict[str, Any] = {"loc": "lower center", "ncols": len(handles), "fontsize": 8.5, "frameon": False}
    figure.legend(handles=handles, handler_map={Circle: HandlerPatch(_key)}, **style)


def _key(*, xdescent: float, ydescent: float, width: float, height: float, **_: Any) -> Circle:
    return Circle((width / 2 - xdescent, height / 2 - ydescent), 0.75 * height)


# --------------------------------------------------------------------------- files
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF; the same figure gives the same bytes."""
    files = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files


def write(scenarios: Sequence[Scenario], out: Path) -> list[Path]:
    """Write every picture, the overview and the table of the models.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files, rows = [], []
    for scenario in scenarios:
        figure, drawing = picture(scenario)
        files += save(figure, out / f"dag-{scenario.name}")
        for m in scenario.models:
            parents = " ".join(f"{parent}:{weight:g}" for parent, weight in m.parents.items())
            rows.append([scenario.name, m.name, parents, m.owner or "", m.trains, drawing.state[m.name]])
    files += save(overview(scenarios), out / "dag-overview")
    table = out / "dags.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["scenario", "model", "parents", "owner", "trains", "state"])
        writer.writerows(rows)
    return [*files, table]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 for a scenario that cannot be built."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.figures.dags", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"scenarios: {', '.join(SCENARIOS)} (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, made when absent")
    parser.add_argument(
        "--classes", type=int, default=100, help="number of classes (default: the paper's 100)"
    )
    given = parser.parse_args(arguments)
    try:
        scenarios = [build(name, given.classes) for name in given.names or SCENARIOS]
    except ScenarioError as e:
        print(f"dags: {e}", file=sys.stderr)
        return 2
    for file in write(scenarios, given.out):
        print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
