"""The HTML page of comparisons, read without a browser: structure, escaping, reasons, pictures."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from compare_cases import STRATEGIES, column, comparison, graph, large

from fl_unlearn.types import ForgetRequest
from simulations.compare.lineage_picture import DRAWN, lineage_chart
from simulations.compare.page import render, write_page
from simulations.compare.pictures import LINE, class_charts, cost_chart, scatter
from simulations.compare.results import CHECKPOINT, COST, Graph
from simulations.compare.sheet import DASH, Sheet

VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """A page's elements, and whether they are nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return render([large(), large(1, ("original", "retrain", "fiun"))])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_tags_are_nested_and_names_unique(page: Page) -> None:
    assert page.wrong == []
    assert page.open == []
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attrs in page.found:
        for key in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(key, ids[0]) in ids
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_nothing_comes_from_outside(text: str, page: Page) -> None:
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest", text)
    for _, attrs in page.found:
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith(("#", "data:,"))


def test_only_the_pages_own_script_may_run(text: str, page: Page) -> None:
    assert len(page.all("script")) == 1
    assert "alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_text_from_outside_is_escaped() -> None:
    bad = "\"'><img src=x onerror=alert(1)>"
    c = comparison(
        {s: {"forget-accuracy": [0.5, None], "class-0": [0.5, 0.5]} for s in ("original", "retrain", bad)},
        (column("forget-accuracy", title=bad), column("probe", title=bad)),
        why=bad,
        refused={bad: bad},
    )
    fields = {**vars(c), "name": bad, "facts": {bad: {0: {bad: bad}}}, "setting": {bad: bad}}
    fields["graph"] = Graph({bad: (bad, 0, bad, True)})
    page = Page(render([type(c)(**fields)]))
    assert page.all("img") == []
    assert page.wrong == []


def test_every_value_and_every_reason_is_there(text: str) -> None:
    c = large()
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</tr>', text.split('class="print"')[0], re.S)
    assert len(rows) == len(STRATEGIES)
    sheet = Sheet(c)
    for row in rows:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
        assert len(cells) == len(c.columns)
        name = unescape(re.split(r"\s*<", row)[0])
        shown = [
            (k.key, x) for (k, x) in zip((k for b in sheet.blocks for k in b.columns), cells, strict=True)
        ]
        for key, cell in shown:
            expected = sheet.cell(name, key)
            assert expected.text in cell
            assert expected.note in unescape(cell)
            assert ("★" in cell) == expected.best
            if expected.mean is None:
                assert DASH in cell
                assert f"no value: {expected.note}" in unescape(cell)
    for note in sheet.notes:
        assert re.search(rf'<li id="c1-note-\d+">{re.escape(note)}</li>', unescape(text))


def test_headings_can_sort_and_say_what_they_mean(page: Page) -> None:
    heads = [a for a in page.all("th") if "aria-sort" in a]
    assert len(heads) == 2 * (len(large().columns) + 1)
    assert {a["aria-sort"] for a in heads} == {"none"}
    assert {f"What {c.key} means." for c in large().columns if c not in (*CHECKPOINT, *COST)} <= {
        a.get("title", "") for a in page.all("button")
    }


def test_summary_and_setting_are_said(text: str) -> None:
    plain = unescape(text)
    assert "To be forgotten: class 3, of every client that holds it." in plain
    assert "No nearer to retraining than mask in any of these:" in plain
    assert "federaser</b>: it needs the clients' updates" in plain
    assert "174 to 176 samples" in plain
    assert "threshold 7.0, lambda 1" in plain
    assert "erase" not in plain.replace("federaser", "").lower()


def test_the_same_comparisons_give_the_same_file(text: str, tmp_path: Path) -> None:
    write_page([large(), large(1, ("original", "retrain", "fiun"))], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == text


def test_an_empty_report_says_so() -> None:
    assert "There is no comparison in this report." in render([])


def test_pictures_without_data_are_left_out() -> None:
    c = comparison({"retrain": {"probe": [0.5]}, "a": {"probe": [0.4]}}, (column("probe"),))
    page = Page(render([c]))
    assert page.all("svg") == []
    assert page.all("select") == []


# --------------------------------------------------------------------------- pictures
def test_points_lie_where_their_values_are_and_labels_never_overlap() -> None:
    chart = scatter(Sheet(large()))
    assert chart is not None
    points = {p.name: p for p in chart.points}
    assert set(points) == set(STRATEGIES) - {"federaser"}
    assert chart.cross == (points["retrain"].x, points["retrain"].y)
    sheet = Sheet(large())
    for a, b in combinations(chart.points, 2):
        kept = [sheet.cell(p.name, "held-retain-accuracy").mean or 0.0 for p in (a, b)]
        forgot = [sheet.cell(p.name, "held-forget-accuracy").mean or 0.0 for p in (a, b)]
        assert (a.x - b.x) * (kept[0] - kept[1]) >= 0
        assert (a.y - b.y) * (forgot[0] - forgot[1]) <= 0
        assert abs(a.label_y - b.label_y) >= LINE - 0.2
    for p in chart.points:
        assert chart.left <= p.x <= chart.right
        assert chart.top <= p.y <= chart.bottom
        assert chart.top <= p.label_y <= chart.bottom
    ticks = [float(t.text) for t in chart.x_ticks]
    assert 3 <= len(ticks) <= 9
    assert all(0 <= t <= 100 for t in ticks)


def test_a_scatter_of_one_strategy_has_a_range() -> None:
    keys = (column("forget-accuracy"), column("retain-accuracy"))
    c = comparison({"a": {"forget-accuracy": [0.0], "retain-accuracy": [1.0]}}, keys)
    chart = scatter(Sheet(c))
    assert chart is not None
    assert chart.cross is None
    assert chart.y_ticks[0].text == "0"
    assert chart.x_ticks[-1].text == "100"


def test_class_bars_show_before_after_and_retrained() -> None:
    values = {"original": 0.9, "retrain": 0.1, "a": 0.3}
    c = comparison(
        {s: {"class-2": [v], "class-10": [v / 2], "forget-accuracy": [v]} for s, v in values.items()},
        (column("forget-accuracy"),),
        request=ForgetRequest((10,)),
    )
    charts = class_charts(Sheet(c))
    assert [chart.strategy for chart in charts] == ["retrain", "a"]
    assert [(b.label, b.forgotten) for b in charts[1].bars] == [(2, False), (10, True)]
    first, second = charts[1].bars
    assert (first.before.mean, first.after.mean, first.retrained.mean) == (0.9, 0.3, 0.1)
    assert (second.before.mean, second.after.mean, second.retrained.mean) == (0.45, 0.15, 0.05)


def test_bars_of_cost_are_shares_of_the_longest() -> None:
    spent = {"original": None, "retrain": 200.0, "a": 50.0, "b": 0.0, "c": None}
    c = comparison({s: {"client-seconds": [v]} for s, v in spent.items()}, (COST[0],))
    chart = cost_chart(Sheet(c))
    assert chart is not None
    assert chart.titles == ["client compute, s"]
    assert [(name, bars[0].length) for name, bars in chart.rows] == [
        ("retrain", 100.0),
        ("a", 25.0),
        ("b", 0.0),
        ("c", 0.0),
    ]
    assert chart.retrained == [100.0]
    assert chart.rows[-1][1][0].cell.mean is None


def test_models_are_layered_by_round_and_client() -> None:
    chart = lineage_chart(graph())
    assert chart is not None
    models = {m.name: m for m in chart.models}
    assert models["initial"].x < models["r1-client-0"].x < models["r1-global"].x < models["r2-client-0"].x
    assert models["r1-global"].y == models["initial"].y < models["r1-client-0"].y < models["r1-client-1"].y
    assert models["r1-client-1"].affected
    assert not models["r1-client-0"].affected
    assert len({(m.x, m.y) for m in chart.models}) == len(chart.models) == chart.total
    assert chart.affected == 14
    assert sum(hit for *_, hit in chart.edges) == 3 * 6 + 1
    assert len(chart.edges) == len(graph().edges)


def test_models_in_one_place_are_drawn_apart_and_long_runs_are_cut() -> None:
    two = lineage_chart(Graph({"a": ("aggregate", 1, "", False), "b": ("aggregate", 1, "", True)}))
    assert two is not None
    assert two.models[0].y != two.models[1].y
    rounds = DRAWN // 4 + 10
    long = lineage_chart(graph(rounds))
    assert long is not None
    assert len(long.models) <= DRAWN
    assert long.total == 4 * rounds + 1
    assert long.cut == (DRAWN - 1) // 4
    assert f"Drawn up to round {long.cut}." in render(
        [type(large())(**{**vars(large(1)), "graph": graph(rounds)})]
    )
