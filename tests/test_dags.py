"""Pictures of the scenarios' graphs: every model in its place, nothing drawn over anything else."""

from __future__ import annotations

import csv
import math
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.patches import Circle, FancyArrowPatch

from fl_unlearn.plan import PlannedModel
from simulations.figures import dags
from simulations.figures.dag_layout import RADIUS, STAGES, curve
from simulations.scenarios import SCENARIOS, Scenario, build


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_lies_over_anything_else(name: str) -> None:
    scenario = build(name, 100)
    drawing = dags.lay_out(scenario)
    assert drawing.at.keys() == {m.name for m in scenario.models}
    for a, b in combinations(drawing.at.values(), 2):
        assert math.dist(a, b) > 3 * RADIUS
    for (a, b), rad in drawing.bends.items():
        for point in curve(drawing.at[a], drawing.at[b], rad, 50):
            assert all(math.dist(point, at) > RADIUS for n, at in drawing.at.items() if n not in (a, b))
    places = [*drawing.words.values()]
    for name_, words in drawing.words.items():
        assert all(math.dist(words, at) > RADIUS for n, at in drawing.at.items() if n != name_)
    assert len({(round(x, 3), round(y, 3)) for x, y in places}) == len(places)
    left, right, bottom, top = drawing.box
    assert all(left < x < right and bottom < y < top for x, y in [*places, *drawing.at.values()])


def test_stages_from_left_to_right_and_back_in_the_next_row() -> None:
    at = dags.lay_out(build("incremental-30", 100)).at
    rows = [[at[f"u{i}"] for i in range(r, r + STAGES)] for r in range(0, 30, STAGES)]
    assert [len({y for _, y in row}) for row in rows] == [1, 1, 1]
    assert rows[0][0][1] > rows[1][0][1] > rows[2][0][1]
    for row, forth in zip(rows, (True, False, True), strict=True):
        xs = [x for x, _ in row]
        assert xs == sorted(xs, reverse=not forth)
    diamond = dags.lay_out(build("diamond", 10)).at
    xs = [{diamond[n][0] for n in stage} for stage in (["init"], ["d", "s"], ["r1"], ["r2"], ["r3", "r4"])]
    assert all(len(x) == 1 for x in xs)
    assert [*map(min, xs)] == sorted(map(min, xs))


def test_what_is_drawn_is_the_graph() -> None:
    scenario = build("diamond", 10)
    figure, drawing = dags.picture(scenario)
    assert drawing.state == {
        "init": "initial",
        "d": "clean",
        "s": "clean",
        "r1": "root",
        "r2": "affected",
        "r3": "affected",
        "r4": "affected",
    }
    (ax,) = figure.axes
    assert sum(isinstance(p, Circle) for p in ax.patches) == 7
    assert sum(isinstance(p, FancyArrowPatch) for p in ax.patches) == sum(
        len(m.parents) for m in scenario.models
    )
    words = [t.get_text() for t in ax.texts]
    assert words.count("1/2") == 6
    assert words.count("client3") == 2
    page = [t.get_text() for t in figure.texts]
    assert {"diamond", "To forget: class 0.", "client1, client2: classes 1-9"} <= {*page}
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 4


def test_words_for_what_is_not_a_plain_training() -> None:
    figure, _ = dags.picture(build("transfer", 10))
    assert "client1, head" in [t.get_text() for t in figure.axes[0].texts]
    figure, _ = dags.picture(build("parallel", 10))
    assert "mean" in [t.get_text() for t in figure.axes[0].texts]
    many = build("diamond", 100, overlap=0)
    assert any(line.endswith(" classes") for line in dags.caption(many, 7)), "a long list is counted"


def test_weights_of_a_large_graph() -> None:
    assert "Of two parents, each weighs 1/2." in dags.caption(build("depth", 10), 50)
    models = (
        PlannedModel("a", owner="x"),
        PlannedModel("b", {"a": 1}, "x"),
        PlannedModel("c", {"a": 3, "b": 1}, "x"),
    )
    uneven = Scenario("uneven", "", models, {"x": (0, 1, 2)}, (0,))
    assert "Weights are in dags.csv." in dags.caption(uneven, 50)
    figure, _ = dags.picture(uneven)
    assert {"3/4", "1/4"} <= {t.get_text() for t in figure.axes[0].texts}


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dags.main(["--out", str(tmp_path / "new"), "--classes", "10", "several", "transfer"]) == 0
    stems = ["dag-several", "dag-transfer", "dag-overview"]
    names = [f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")] + ["dags.csv"]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    for name in names:
        head = (tmp_path / "new" / name).read_bytes()[:4]
        assert head == {"png": b"\x89PNG", "pdf": b"%PDF"}.get(name[-3:], b"scen")
    with (tmp_path / "new" / "dags.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 5
    assert rows[3] == {
        "scenario": "several",
        "model": "r4",
        "parents": "r1:0.5 r2:0.5",
        "owner": "client3",
        "trains": "all",
        "state": "affected",
    }


def test_a_wrong_name_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dags.main(["--out", str(tmp_path / "new"), "dpth"]) == 2
    assert "did you mean 'depth'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
