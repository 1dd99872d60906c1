"""The report page and the endpoint's page: contrast of their colours, and their width on a phone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from llmpod.endpoint.api.server import page_text
from llmpod.loadtest.report.html import TEMPLATES
from llmpod.loadtest.report.svg import Series, hatching, plot

ROOT = Path(__file__).parents[1] / "src/llmpod"
PAGES = {"report": ROOT / "loadtest/report/report_template.html", "endpoint": ROOT / "endpoint/page/style.css"}
BACKGROUNDS = {"page", "ground", "card", "code"}
DECORATION = {"rule", "line", "more"}
"""Borders, grid lines and shadows: nothing is read from them alone."""
FLOOR = 3.0
"""Of graphics and large text, WCAG 2.1, 1.4.11 and 1.4.3."""


def palettes(page: str) -> list[dict[str, str]]:
    """The colours of the light and of the dark mode."""
    css = PAGES[page].read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(blocks) == 2
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block)) for block in blocks]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula_agrees_with_known_pairs() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_every_colour_is_told_from_its_background(page: str, mode: int) -> None:
    palette = palettes(page)[mode]
    marks = palette.keys() - BACKGROUNDS - DECORATION
    assert len(marks) >= 8
    weak = {
        (mark, ground): contrast(palette[mark], palette[ground])
        for mark in marks
        for ground in BACKGROUNDS & palette.keys()
        if contrast(palette[mark], palette[ground]) < FLOOR
    }
    assert not weak


@pytest.mark.parametrize("page", PAGES)
def test_nothing_that_carries_data_is_drawn_half_transparent(page: str) -> None:
    rules = re.findall(r"([^{}]+)\{([^{}]*opacity[^{}]*)\}", PAGES[page].read_text())
    assert {selector.strip().split("\n")[-1].strip() for selector, _ in rules} <= {".shade", "button:disabled"}


def draw(series: list[Series], **how: Any) -> str:
    return TEMPLATES.from_string('{% from "figures.html" import plot %}{{ plot(made) }}').render(
        made=plot(series, x_text=str, y_text=str, **how)
    )


def test_lines_of_a_plot_differ_by_their_dashes_and_the_legend_names_only_them() -> None:
    flat = [(0.0, 1.0), (5.0, 1.0)]
    drawn = draw(
        [
            Series("one", "exec", "steps", flat),
            Series("none", "bad", "steps", []),
            Series("two", "wait", "steps", flat),
        ],
        title="two lines",
        whole=True,
    )
    assert 'class="line dash0 exec"' in drawn
    assert 'class="line dash1 wait"' in drawn
    assert re.findall(r"</i>(\w+)</span>", drawn) == ["one", "two"]
    assert re.findall(r'text-anchor="end">([\d.]+)<', drawn) == ["0.0", "1.0"], "no grid line at half a worker"


def test_kinds_of_jobs_and_parts_of_a_bar_are_told_without_colours() -> None:
    one = [(0.0, 1.0)]
    drawn = draw(
        [
            Series("done", "total", "dots", one),
            Series("failed", "bad", "crosses", one),
            Series("x", "dim", "ticks", one),
        ],
        title="jobs",
    )
    strokes = re.findall(r'<path class="(\w+ \w+)" d="M\S+ \d+\.\d([^"]+)"', drawn)
    assert [css for css, _ in strokes] == ["dots total", "crosses bad", "ticks dim"]
    assert len({stroke for _, stroke in strokes}) == 3
    assert re.findall(r'<i class="[\w ]+">(.)</i>(\w+)', drawn) == [("●", "done"), ("✕", "failed"), ("–", "x")]
    assert len({hatching(css, 0.0, 0, 100.0) for css in ("wait", "bad", "delay", "exec", "overhead")}) == 5


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


WIDER = """
const edge = document.documentElement.clientWidth;
return [...document.querySelectorAll("main *")].filter((one) => !one.parentElement.closest(".scroll"))
  .filter((one) => one.getBoundingClientRect().right > edge + 1).map((one) => one.outerHTML.slice(0, 80));
"""


@pytest.mark.browser
def test_on_a_phone_a_plot_keeps_its_size_and_scrolls(browser: webdriver.Chrome, tmp_path: Path) -> None:
    figure = draw([Series("x", "exec", "steps", [(0.0, 1.0), (9.0, 2.0)])], title="x")
    cells = "<td class=r>1 ms<small>n/a (n=3, need 299)</small></td>" * 9
    table = f"<div class='scroll'><table><tr>{cells}</tr></table></div>"
    body = f"<section class='card'>{figure}{table}</section>"
    page = tmp_path / "report.html"
    frame = '{% extends "report_template.html" %}{% block body %}{{ body|safe }}{% endblock %}'
    text = TEMPLATES.from_string(frame).render(title="t", subtitle="s", body=body)
    page.write_text(text)
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    assert browser.execute_script(WIDER) == []
    assert browser.execute_script("return document.querySelector('svg').getBoundingClientRect().width") >= 640
    label = "return document.querySelector('svg .tick').getBoundingClientRect().height"
    assert browser.execute_script(label) >= 9
    lines = "const r = document.createRange(); r.selectNodeContents(document.querySelector('td small'));"
    assert browser.execute_script(f"{lines} return r.getClientRects().length") == 1, "an interval does not wrap"


@pytest.mark.browser
@pytest.mark.parametrize("page", ["queue.html", "load_balancer.html"])
def test_the_endpoints_page_fits_a_phone(browser: webdriver.Chrome, tmp_path: Path, page: str) -> None:
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    (tmp_path / page).write_text(page_text(page))
    browser.get((tmp_path / page).as_uri())
    assert browser.execute_script(WIDER) == []
