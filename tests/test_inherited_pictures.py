"""The figures on graphs of models, as they are drawn and tabulated from known records."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from fl_unlearn.figures import BLACK, BLUE, GREEN, GREY, VERMILLION
from simulations.figures.inherited import claims, curves, depth, every_model, mfim, overlap, scope, threshold
from simulations.figures.inherited.drawing import save
from simulations.figures.inherited.records import Record
from simulations.figures.inherited.tables import to_csv, to_markdown

ABOUT: Record = {
    **{"experiment": "e", "scenario": "diamond", "dataset": "digits", "data": "scanned digits"},
    **{"network": "mlp", "size": "small", "seed": 0},
}


def record(**changes: str | float | bool | None) -> Record:
    own: Record = {"model": "r1", "generation": 1, "affected": True, "forgotten_labels": 1, "refused": ""}
    return {**ABOUT, **own, "owner_seconds": None, "forget": 0.0, "retained": 0.9, **changes}


def graph(experiment: str = "e", *, refused: str = "") -> list[Record]:
    """A clean model and two affected ones, before, after two methods, retrained."""
    why = {"refused": refused, "forget": None, "retained": None} if refused else {}
    rows = [record(model="d", generation=0, affected=False, method="before", forget=None, retained=0.8)]
    for model, deep, extra in (("r1", 1, 0.0), ("r2", 2, 0.01)):
        at = {"model": model, "generation": deep}
        rows += [
            record(**at, method="before", forget=1.0 - extra, retained=0.9),
            record(**at, method="ours", owner_seconds=2.0, **({"retained": 0.89 + extra} | why)),
            record(**at, method="paper", forget=0.5, retained=0.7, owner_seconds=50.0),
            record(**at, method="retrained", forget=0.0, retained=0.91, owner_seconds=200.0),
        ]
    return [{**row, "experiment": experiment} for row in rows]


def marks(ax: Axes, colour: str) -> list[tuple[float, float]]:
    """The points of this colour that are drawn as marks."""
    lines = [line for line in ax.lines if line.get_marker() not in (None, "None", "", "none")]
    own = [line for line in lines if to_rgba(line.get_color()) == to_rgba(colour)]
    return [(float(x), float(y)) for line in own for x, y in zip(*line.get_data(), strict=True)]


def words(figure: Figure) -> list[str]:
    legend = figure.legends[0]
    return [text.get_text() for text in legend.get_texts()]


# --------------------------------------------------------------------------- every model
def test_every_model_has_its_marks_in_its_row() -> None:
    figure = every_model.draw(graph())
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["d", "r1", "r2"]
    assert [label.get_color() for label in left.get_yticklabels()] == [GREY, BLACK, BLACK]
    assert [x for x, _ in marks(left, BLUE)] == [0.0, 0.0]
    assert [x for x, _ in marks(left, GREY)] == [100.0, 99.0]
    assert [x for x, _ in marks(right, GREY)] == pytest.approx([80.0, 90.0, 90.0])
    assert [round(y) for _, y in marks(right, BLUE)] == [1, 2]
    assert len({y for colour in (GREY, BLUE, VERMILLION, GREEN) for _, y in marks(right, colour)}) == 9
    assert words(figure) == ["before", "ours", "the paper's settings", "retrained"]


def test_what_was_refused_is_named_and_has_no_mark() -> None:
    for draw in (every_model.draw, depth.draw):
        figure = draw(graph(refused="too little"))
        drawn = [y for ax in figure.axes for _, y in marks(ax, BLUE) if not math.isnan(y)]
        assert drawn == []
        assert "ours" not in words(figure)
        assert "ours refused in e" in figure.axes[0].get_title(loc="left").replace("\u00a0", " ")


def test_the_overview_has_the_worst_and_the_mean_of_every_experiment() -> None:
    figure = every_model.overview(graph("a") + graph("b", refused="too little"))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    assert [x for x, _ in marks(left, GREY)] == [100.0, 100.0]
    assert marks(right, BLUE)[0][0] == pytest.approx(89.5)
    assert len(marks(right, BLUE)) == 1
    assert "ours refused in b" in left.get_title(loc="left")


def test_fifty_models_keep_their_labels_apart() -> None:
    rows = [record(model=f"m{i}", method=way) for i in range(50) for way in ("before", "ours", "retrained")]
    figure = every_model.draw(rows)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 50
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_a_row_of_the_table_is_a_model() -> None:
    rows = every_model.table(graph())
    assert [row["model"] for row in rows] == ["d", "r1", "r2"]
    assert rows[0]["retained: ours"] is None
    assert rows[2]["forget: before"] == 0.99
    assert rows[2]["retained: the paper's settings"] == 0.7


# --------------------------------------------------------------------------- against something
def point(way: str, t: float | None, forget: float | None, **changes: str | float | None) -> Record:
    rest: Record = {"dampening": 1.0, "chosen": "", "model": "r1", "retained": 0.9, "refused": ""}
    return {**ABOUT, "way": way, "threshold": t, "forget": forget, **rest, **changes}


CURVE = [
    point("before", None, 1.0),
    point("retrained", None, 0.0),
    point("ours", 1.0, 0.0),
    point("ours", 1.0, 0.2, model="r2"),
    point("ours", 10.0, 0.6),
    point("ours", 10.0, 0.8, model="r2"),
    point("ours", 3.0, 0.0, chosen=curves.CALIBRATION, dampening=0.1),
    point("paper", 100.0, 0.9, chosen=curves.BY_HAND),
]


def test_curves_are_means_and_what_was_chosen_is_marked() -> None:
    figure = threshold.draw(CURVE)
    left = figure.axes[0]
    line = next(line for line in left.lines if line.get_marker() == "o" and line.get_color() == BLUE)
    assert line.get_data()[0].tolist() == [1.0, 10.0]
    assert line.get_data()[1].tolist() == pytest.approx([10.0, 70.0])
    assert [line.get_data()[0].tolist() for line in left.lines if line.get_marker() == "*"] == [[3.0]]
    assert [line.get_data()[0].tolist() for line in left.lines if line.get_markersize() == 12.0] == [
        [3.0],
        [100.0],
    ]
    assert left.get_xscale() == "log"
    assert "t = 3 (λ = 0.1)" in left.get_title(loc="left").replace("\u00a0", " ")
    assert words(figure)[-2:] == ["chosen by calibration", "the paper's t"]


def test_a_band_reaches_from_the_worst_model_to_the_best() -> None:
    left = threshold.draw(CURVE).axes[0]
    heights = [c.get_paths()[0].vertices[:, 1] for c in left.collections if len(c.get_paths())]
    assert any((h.min(), h.max()) == pytest.approx((0.0, 80.0)) for h in heights)


def test_a_calibration_that_refused_has_no_star() -> None:
    refused = point(
        "max", None, None, chosen=curves.CALIBRATION, model="", retained=None, refused="none passed"
    )
    figure = mfim.draw([point("before", None, 1.0), point("max", 1.0, 0.5), refused])
    assert not [line for ax in figure.axes for line in ax.lines if line.get_marker() == "*"]
    assert "max: refused, nothing was changed" in figure.axes[0].get_title(loc="left").replace("\u00a0", " ")
    assert "chosen by calibration" not in words(figure)
    rows = curves.table([refused])
    assert (rows[0]["refused"], rows[0]["forget: mean"], rows[0]["t"]) == ("yes", None, "")


def test_the_table_of_curves_has_means_and_the_worst() -> None:
    rows = curves.table(CURVE)
    ours = next(row for row in rows if (row["way"], row["t"]) == ("ours", "10"))
    assert (ours["forget: mean"], ours["forget: worst"]) == (pytest.approx(0.7), 0.8)
    assert [row["chosen by"] for row in rows if row["chosen by"]] == [curves.CALIBRATION, curves.BY_HAND]


def test_depth_is_drawn_against_generations() -> None:
    figure = depth.draw(graph())
    left, right = figure.axes
    assert marks(left, BLUE) == [(1.0, 0.0), (2.0, 0.0)]
    assert math.isnan(marks(left, GREY)[0][1]), "a model that never learned it has no mark"
    assert marks(right, GREY) == [(0.0, pytest.approx(80.0)), (1.0, pytest.approx(90.0)), (2.0, 90.0)]


def test_a_refusal_leaves_a_gap_in_the_line_over_overlaps() -> None:
    rows = []
    for share in (0.0, 0.5, 1.0):
        why = {"refused": "too little", "forget": None, "retained": None} if share == 0.5 else {}
        rows += [{**record(method="before"), "overlap": share}]
        rows += [{**record(method="ours", **why), "overlap": share}]
    figure = overlap.draw(rows)
    ours = marks(figure.axes[1], BLUE)
    assert [math.isnan(y) for _, y in ours] == [False, True, False]
    assert "ours refused at overlap 0.5" in figure.axes[0].get_title(loc="left").replace("\u00a0", " ")
    table = overlap.table(rows)
    assert [row["refused"] for row in table if row["way"] == "ours"] == ["", "yes", ""]


def test_scopes_show_marks_and_times() -> None:
    rest: Record = {"scope": "", "threshold": 3.0, "refused": "", "owner_seconds": None}
    rows: list[Record] = [
        {**ABOUT, **rest, "way": "before", "model": "r1", "forget": 1.0, "retained": 0.9},
        {
            **ABOUT,
            **rest,
            "way": "retrained",
            "model": "r1",
            "forget": 0.0,
            "retained": 0.9,
            "owner_seconds": 40.0,
        },
        {**ABOUT, **rest, "way": "head", "model": "r1", "forget": 0.0, "retained": 0.8, "owner_seconds": 2.0},
        {**ABOUT, **rest, "way": "head", "model": "r2", "forget": 0.1, "retained": 0.6, "owner_seconds": 2.0},
        {
            **ABOUT,
            **rest,
            "way": "all layers",
            "model": "",
            "forget": None,
            "retained": None,
            "owner_seconds": 9.0,
        }
        | {"refused": "none passed"},
    ]
    figure = scope.draw(rows)
    left, right, seconds = figure.axes
    assert [y for _, y in marks(right, BLUE)] == pytest.approx([80.0, 60.0])
    assert [y for _, y in marks(left, BLUE)] == pytest.approx([0.0, 10.0])
    assert [text.get_text() for text in left.texts] == ["refused"]
    assert [bar.get_height() for bar in seconds.patches] == [2.0, 9.0, 40.0]
    assert [row["refused"] for row in scope.table(rows)] == ["", "", "", "yes"]


# --------------------------------------------------------------------------- words and files
def test_the_claim_stands_beside_what_was_measured() -> None:
    lines = claims.compared(graph(), claims.SINGLE)
    assert lines[0] == "the paper's claim: 0.00% forgotten, 94.53% on the other labels, 99% less time"
    assert lines[1] == "before: 99.50% and 90.00%"
    assert lines[2] == (
        "ours: 0.00% and 89.50%, at 1.0% of the owners' computing time of retraining (99.0% less)"
    )
    assert "the paper's settings: 50.00% and 70.00%" in lines[3]
    assert "this is other data: scanned digits; its networks have their full size" in lines[-1]


def test_a_claim_on_the_papers_data_says_nothing_of_other_data() -> None:
    rows = [{**row, "dataset": "cifar100", "size": "full"} for row in graph()]
    note = claims.compared(rows, claims.SINGLE)[-1]
    assert "other data" not in note
    assert "small" not in note


def test_time_where_a_method_refused_is_not_compared() -> None:
    both = graph("a") + graph("b", refused="too little")
    assert claims.spared(graph("b", refused="x"), "ours") is None
    assert claims.spared(both, "ours") == pytest.approx(0.99)
    assert any(line.endswith("; refused in b") for line in claims.compared(both, claims.SINGLE))


def test_slower_than_retraining_is_said_so() -> None:
    rows = [{**row, "owner_seconds": 300.0} if row["method"] == "ours" else row for row in graph()]
    assert (
        "at 150.0% of the owners' computing time of retraining (more)"
        in claims.compared(rows, claims.SINGLE)[2]
    )


def test_tables() -> None:
    rows: list[Record] = [{"a": "x", "forget: mean": 0.1234}, {"a": "y|z", "forget: mean": None, "s": 1234.5}]
    assert to_csv(rows) == "a,forget: mean,s\nx,0.1234,\ny|z,,1234.5\n"
    assert to_markdown(rows).splitlines() == [
        "| a | forget: mean | s |",
        "| --- | --- | --- |",
        "| x | 12.34 | - |",
        "| y\\|z | - | 1234 |",
    ]


def test_the_same_figure_gives_the_same_files(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in save(every_model.draw(graph()), tmp_path / "a")]
    second = [path.read_bytes() for path in save(every_model.draw(graph()), tmp_path / "b")]
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
