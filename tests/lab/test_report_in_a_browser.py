"""The report as a person meets it: in headless Chromium, from a file, with nothing else to load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relpos.lab.report import write_report
from relpos.lab.run import Run
from tests.lab.conftest import ENCODINGS, SIGNS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FIRST = "figure[data-chart='0']"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        why = f"none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page opened from its file, with all that it complained of and all that it asked for beside itself."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self.asked.append(asked.url[:80]))
        self.page.goto(path.as_uri())

    def first_column(self) -> list[str]:
        cells: list[str] = self.page.locator(
            "table.sortable >> nth=0 >> tbody tr:visible td:first-child"
        ).all_inner_texts()
        return [cell.strip() for cell in cells]

    def close(self) -> None:
        self.page.context.close()
        assert self.complaints == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in self.asked)


@pytest.fixture
def visit(browser: Any, finished: Run) -> Iterator[Visit]:
    seen = Visit(browser, finished.path / "report.html")
    yield seen
    seen.close()


def drag(visit: Visit, box: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From and to, in parts of the box."""
    places = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in (start, end)]
    visit.page.mouse.move(*places[0])
    visit.page.mouse.down()
    visit.page.mouse.move(*places[1], steps=4)
    visit.page.mouse.up()


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(visit: Visit) -> None:
    head = visit.page.locator("table.sortable >> nth=0 >> th >> nth=1")
    before = visit.first_column()

    def numbers() -> list[float]:
        cells = visit.page.locator("table.sortable >> nth=0 >> tbody tr td:nth-child(2)").all_inner_texts()
        return [float(cell.split()[0]) for cell in cells]

    head.click()
    assert head.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
    head.press("Enter")
    assert head.get_attribute("aria-sort") == "descending" and numbers() == sorted(numbers(), reverse=True)
    head.press("Enter")
    assert visit.first_column() == before


def test_what_cannot_be_measured_is_sorted_last(visit: Visit) -> None:
    refused = visit.page.locator("td.refused").first.locator("xpath=..").get_attribute("data-encoding")
    last = visit.page.locator("table.sortable >> nth=0 >> thead th").count() - 5  # before parameters and costs
    head = visit.page.locator(f"table.sortable >> nth=0 >> th >> nth={last}")
    for _ in range(2):
        head.click()
        rows = visit.page.locator("table.sortable >> nth=0 >> tbody tr")
        assert rows.last.get_attribute("data-encoding") == refused


def test_rows_that_are_hidden_keep_their_place_in_the_order(visit: Visit) -> None:
    head = visit.page.locator("table.sortable >> nth=0 >> th", has_text="parameters")
    second = visit.page.locator("table.sortable >> nth=0 >> td .sub").nth(1)
    second.evaluate(
        "element => { element.textContent = '99,999' }"
    )  # read as one number with the first, it would be last
    head.click()
    order = visit.first_column()
    visit.page.locator("#chooser button", has_text="none").click()
    head.click()
    head.click()
    head.click()
    visit.page.locator("#chooser button", has_text="all").click()
    assert visit.first_column() == order


def test_encodings_are_chosen_in_tables_cards_and_charts_alike(visit: Visit) -> None:
    name = ENCODINGS[0]
    places = (f"tr[data-encoding='{name}']", f"{FIRST} g.series[data-encoding='{name}']")
    assert all(visit.page.locator(place).first.is_visible() for place in places)
    visit.page.locator(f"#chooser input[value='{name}']").uncheck()
    assert not visit.page.locator(places[0]).is_visible() and visit.page.locator(places[1]).count() == 0
    assert visit.page.locator(f".card[data-encoding='{name}']:visible").count() == 0
    visit.page.locator("#chooser button", has_text="all").click()
    assert visit.page.locator(places[0]).is_visible() and visit.page.locator(places[1]).count() > 0


def test_pointing_at_a_chart_says_the_value(visit: Visit) -> None:
    dot = visit.page.locator(f"{FIRST} g.series circle").first
    visit.page.locator(f"{FIRST} svg.chart").scroll_into_view_if_needed()
    box = dot.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert visit.page.locator(f"{FIRST} .tip").inner_text().split(": ")[0] in ENCODINGS
    visit.page.mouse.move(1, 1)
    assert not visit.page.locator(f"{FIRST} .tip").is_visible()


def test_a_part_of_a_chart_is_enlarged_and_all_of_it_shown_again(visit: Visit) -> None:
    chart = visit.page.locator(f"{FIRST} svg.chart")
    chart.scroll_into_view_if_needed()
    before, box = chart.locator("text").all_text_contents(), chart.bounding_box()
    drag(visit, box, (0.4, 0.2), (0.7, 0.6))
    labels = chart.locator("text").all_text_contents()
    assert visit.page.locator(f"{FIRST} button.reset").is_visible()
    assert labels and labels != before
    visit.page.locator(f"{FIRST} button.reset").click()
    assert chart.locator("text").all_text_contents() == before
    assert not visit.page.locator(f"{FIRST} button.reset").is_visible()
    drag(visit, box, (0.4, 0.2), (0.7, 0.6))
    assert chart.locator("text").all_text_contents() == labels
    chart.dblclick()
    assert chart.locator("text").all_text_contents() == before


def test_a_drag_beside_the_axes_leaves_numbers_on_them(visit: Visit) -> None:
    chart = visit.page.locator(f"{FIRST} svg.chart")
    chart.scroll_into_view_if_needed()
    drag(visit, chart.bounding_box(), (0.01, 0.2), (0.06, 0.6))  # over the labels of the upright axis
    paths = chart.locator("g.series path").evaluate_all("all => all.map((path) => path.getAttribute('d'))")
    assert paths and not any("NaN" in path or "Infinity" in path for path in paths)
    assert visit.page.locator(f"{FIRST} button.reset").is_visible()


def test_a_finger_enlarges_along_one_axis(browser: Any, finished: Run) -> None:
    phone = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
    seen = Visit(browser, finished.path / "report.html", **phone)
    chart = seen.page.locator(f"{FIRST} svg.chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    upright = chart.locator("text[text-anchor='end']")
    before, steps = upright.all_text_contents(), [0.3, 0.4, 0.5, 0.6, 0.7]
    fingers = seen.page.context.new_cdp_session(seen.page)
    for kind, part in [("touchStart", 0.3), *(("touchMove", step) for step in steps)]:
        at = {"x": box["x"] + part * box["width"], "y": box["y"] + (0.4 + 0.02 * part) * box["height"]}
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert seen.page.locator(f"{FIRST} button.reset").is_visible()
    assert upright.all_text_contents() == before
    seen.close()


def test_an_axis_of_names_shows_those_that_are_chosen(browser: Any, signs: Run) -> None:
    seen = Visit(browser, signs.path / "report.html")
    chart = seen.page.locator(f"{FIRST} svg.chart")
    chart.scroll_into_view_if_needed()
    names = chart.locator("text[text-anchor='end'] title")
    assert names.all_text_contents() == list(SIGNS)
    seen.page.locator(f"#chooser input[value='{SIGNS[0]}']").uncheck()
    assert names.all_text_contents() == list(SIGNS[1:])
    box = chart.bounding_box()
    middle = chart.locator("text", has_text=SIGNS[1]).bounding_box()
    part = (middle["y"] + middle["height"] / 2 - box["y"]) / box["height"]
    drag(seen, box, (0.5, part - 0.05), (0.6, part + 0.05))
    assert names.all_text_contents() == [SIGNS[1]]
    seen.close()


def test_a_picture_opens_large(visit: Visit) -> None:
    visit.page.locator("img.enlarges").first.click()
    assert visit.page.locator("dialog[open] img").is_visible()
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("dialog[open]").count() == 0


def test_music_is_played_and_its_cursor_moves(visit: Visit) -> None:
    pytest.importorskip("symusic", reason="the extra music reads MIDI files")
    play = visit.page.locator(".music button").first
    play.click()
    visit.page.wait_for_function("document.querySelector('.music .cursor').getAttribute('x1') > 1", timeout=5000)
    assert "stop" in play.inner_text()
    play.click()
    assert "play" in play.inner_text() and visit.page.locator(".music .cursor").first.get_attribute("x1") == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_page(browser: Any, finished: Run, scheme: str) -> None:
    seen = Visit(browser, finished.path / "report.html", viewport={"width": 400, "height": 800}, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
    ink, page = (seen.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(map(int, ink[4:-1].split(","))) > sum(map(int, page[4:-1].split(",")))) is (scheme == "dark")
    dot = seen.page.locator("td .dot").first
    dot.evaluate("dot => dot.setAttribute('style', 'background:#000000')")  # the fifth contestant's
    assert dot.evaluate("dot => getComputedStyle(dot).backgroundColor") == ink
    seen.close()


def test_a_long_name_does_not_widen_a_phone(browser: Any, finished: Run, tmp_path: Path) -> None:
    name = "a_name_without_a_blank[that=is,longer=than,the_screen_of=a_telephone]"
    page = (finished.path / "report.html").read_text(encoding="utf-8").replace(ENCODINGS[-1], name)
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    phone = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
    seen = Visit(browser, tmp_path / "report.html", **phone)
    assert seen.page.locator("h3", has_text=name).count() > 0
    for dot in seen.page.locator(f"{FIRST} g.series[data-encoding='{name}'] circle").all():
        dot.scroll_into_view_if_needed()
        box = dot.bounding_box()
        seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tip = seen.page.locator(f"{FIRST} .tip").bounding_box()
        assert tip["x"] >= 0 and tip["x"] + tip["width"] <= 400
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
    seen.close()


def test_it_is_printed_light_and_still(browser: Any, finished: Run) -> None:
    seen = Visit(browser, finished.path / "report.html", color_scheme="dark")
    seen.page.emulate_media(media="print", color_scheme="dark")
    ink, page = (seen.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert sum(map(int, ink[4:-1].split(","))) < sum(map(int, page[4:-1].split(",")))
    assert seen.page.locator("figure[data-chart] img").first.is_visible()
    assert not seen.page.locator("svg.chart:visible, #chooser:visible, .music:visible").count()
    seen.close()


def test_without_scripts_tables_and_pictures_remain(browser: Any, finished: Run) -> None:
    seen = Visit(browser, finished.path / "report.html", java_script_enabled=False)
    assert len(seen.first_column()) > len(ENCODINGS)
    assert seen.page.locator("figure[data-chart] img").first.is_visible()
    seen.close()


def test_names_cannot_break_out_of_the_page(browser: Any, finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("Echo: a made-up language", "</script><b id='out'>Echo"))
    seen = Visit(browser, write_report(Run.read(copy)))
    assert seen.page.locator("#out").count() == 0
    seen.close()
