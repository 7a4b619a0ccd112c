"""The HTML page of comparisons in a real browser: Debian's chromium, from disk, with the network off."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compare_cases import large

from simulations.compare.page import write_page

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install '.[test]'"
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/install_browser.sh as root")

Open = Callable[..., sync_api.Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page([large(), large(1, ("original", "retrain", "fiun"))], file)
    return file


@pytest.fixture
def open_page(browser: sync_api.Browser, path: Path) -> Iterator[Open]:
    """Opens the page; afterwards, nothing may have been complained of or asked for but the file."""
    contexts, wrong = [], []

    def opened(width: int = 1280, **options: object) -> sync_api.Page:
        context = browser.new_context(offline=True, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine is slow to start
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: r.url == path.as_uri() or r.url == "data:," or wrong.append(r.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def _background(page: sync_api.Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def _names(page: sync_api.Page) -> list[str]:
    return page.locator(".screen").first.locator("tbody.sortable th").all_inner_texts()


def test_it_opens_and_is_light_or_dark_as_the_system_is(open_page: Open) -> None:
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert light.title() == "Ways to forget, side by side"
    assert _background(light) != _background(dark)
    assert light.screenshot() != dark.screenshot()
    assert light.locator("html.js").count() == 1


def test_the_toggle_changes_the_theme_and_back(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    before = _background(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the comparisons"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    page.keyboard.press("Enter")
    after = _background(page)
    assert after != before
    assert page.locator("#theme").inner_text() == "Switch to light"
    page.keyboard.press("Space")
    assert _background(page) == before


def test_columns_sort_by_keyboard(open_page: Open) -> None:
    page = open_page()
    table = page.locator(".screen table").first
    head = table.locator(".heads th").nth(1)
    fixed = table.locator("tbody").first.inner_text()
    before = _names(page)

    def values() -> list[str | None]:
        rows = table.locator("tbody.sortable tr")
        return rows.evaluate_all("rows => rows.map(r => r.cells[1].dataset.v ?? null)")

    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = [float(v) for v in values() if v is not None]
    assert numbers == sorted(numbers)
    assert values()[-1] is None, "what has no value comes last"
    assert _names(page) != before
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(v) for v in values() if v is not None] == sorted(numbers, reverse=True)
    assert values()[-1] is None
    assert "descending" in page.locator("#said").inner_text()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert _names(page) == before
    assert table.locator("tbody").first.inner_text() == fixed, "the reference rows stay"


def test_only_one_heading_is_sorted_at_a_time(open_page: Open) -> None:
    page = open_page()
    table = page.locator(".screen table").first
    table.locator(".heads button").nth(0).click()
    assert _names(page) == sorted(_names(page), key=str.lower)
    table.locator(".heads button").nth(2).click()
    assert table.locator("[aria-sort]:not([aria-sort=none])").count() == 1


def test_the_choice_changes_the_picture_by_class(open_page: Open) -> None:
    page = open_page()
    part = page.locator(".by-class").first
    assert part.locator("figure:visible").count() == 1
    first = part.locator("figure:visible").get_attribute("id")
    part.locator("select").focus()
    page.keyboard.press("ArrowDown")
    assert part.locator("figure:visible").count() == 1
    assert part.locator("figure:visible").get_attribute("id") != first
    part.locator("select").select_option(label="mask")
    assert part.locator("figure:visible svg").get_attribute("aria-label").startswith("mask.")


def test_meanings_and_reasons_show_on_focus(open_page: Open) -> None:
    page = open_page()
    tip = page.locator("#tip")
    page.locator(".screen .heads button").nth(1).focus()
    assert tip.inner_text() == "What forget-accuracy means."
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    reason = page.locator(".screen a.why").first
    reason.focus()
    assert tip.is_visible()
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    assert reason.get_attribute("aria-label") == f"no value: {tip.inner_text()}"
    page.keyboard.press("Enter")
    assert page.locator("li:target").inner_text() == tip.inner_text()


@pytest.mark.parametrize("width", [360, 1280])
def test_only_boxes_scroll_sideways(open_page: Open, width: int) -> None:
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator(".screen").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    name = box.locator("tbody.sortable th").first
    before = name.bounding_box()
    box.evaluate("e => { e.scrollLeft = 600; }")
    after = name.bounding_box()
    assert before is not None
    assert after is not None
    assert before["x"] == pytest.approx(after["x"], abs=2), "the first column stays"
    assert before["width"] < width / 2


def test_a_reader_without_scripts_sees_all(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#theme").is_hidden()
    assert page.locator(".by-class").first.locator("figure:visible").count() == len(large(1).strategies) - 2
    assert page.locator(".screen a.why").first.get_attribute("title")


def test_print_shows_narrow_tables_instead_of_the_wide_one(open_page: Open) -> None:
    page = open_page(1032)
    page.emulate_media(media="print")
    assert page.locator(".screen").first.is_hidden()
    assert page.locator(".print table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(open_page: Open, scheme: str) -> None:
    """Every colour of text on every background of the page: at least 4.5 to 1 (WCAG 2.2, AA)."""
    page = open_page(color_scheme=scheme)
    found = page.evaluate(
        """() => {
          const light = (c) => {
            const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
              .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const below = (e) => {
            for (; e; e = e.parentElement) {
              const c = getComputedStyle(e).backgroundColor;
              if (c !== "rgba(0, 0, 0, 0)") return c;
            }
          };
          const seen = {};
          for (const e of document.querySelectorAll("p,a,b,li,th,td,span,button,small,dt,summary,text")) {
            if (!e.textContent.trim()) continue;
            const style = getComputedStyle(e);
            const own = light(e.tagName === "text" ? style.fill : style.color);
            const ratio = (own + 0.05) / (light(below(e)) + 0.05);
            seen[`${e.tagName}.${e.getAttribute("class")}`] = Math.max(ratio, 1 / ratio);
          }
          return seen;
        }"""
    )
    assert len(found) > 15
    assert {k: v for k, v in found.items() if v < 4.5} == {}
