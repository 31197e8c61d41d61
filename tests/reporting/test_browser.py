"""Pages as a real browser shows them."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ase_finetune.reporting import write_comparison, write_report
from tests.reporting import records
from tests.reporting.test_comparison import run as small_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)"),
]

# Alone and without graphics, as in a container; and asking for nothing by itself.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    },
    "print": {"viewport": {"width": 688, "height": 970}, "color_scheme": "dark"},  # A4 less its margins
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = "a_very_long_name_without_any_space_" * 4
    record = records.relaxation_run(log=[long * 3, "last line"])
    record.metadata["split"] = long
    record.pairs.descriptions[:] = [long] * len(record.pairs.descriptions)
    (folder / "report").mkdir()
    (folder / "nothing").mkdir()
    runs = {long: small_run("naive", 0.06, 0.03), "b": small_run("ewc", 0.1, 0.002), "c": small_run("replay", 0.12)}
    return {
        "report": write_report(record, folder / "report"),
        "nothing": write_report(records.run(0, history=[], frames=[], drift=[]), folder / "nothing"),
        "comparison": write_comparison(runs, folder / "comparison"),
    }


@pytest.fixture(scope="module", params=[(name, view) for name in ("report", "nothing", "comparison") for view in VIEWS],
                ids="-".join)  # fmt: skip
def opened(request, browser, pages) -> Iterator[tuple[str, str, Any]]:
    name, view = request.param
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda asked: problems.append(f"failed: {asked.url}"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    if view == "print":
        page.emulate_media(media="print")
    page.goto(pages[name].as_uri())
    page.problems, page.asked = problems, asked
    yield name, view, page
    context.close()


def test_nothing_goes_wrong_and_nothing_is_fetched(opened):
    _, _, page = opened
    assert page.problems == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


def test_every_chart_is_to_be_seen(opened):
    name, _, page = opened
    found = page.evaluate(
        """() => [...document.querySelectorAll('figure svg, figure img, .periodic')].map(item => {
            const box = item.getBoundingClientRect();
            return [box.width, box.height, item.checkVisibility({opacityProperty: true, visibilityProperty: true})];
        })"""
    )
    assert len(found) >= {"report": 30, "nothing": 0, "comparison": 2}[name]
    assert all(width > 150 and height > 60 and visible for width, height, visible in found)
    shapes = page.evaluate(
        """() => [...document.querySelectorAll('figure svg')].filter(svg =>
            ![...svg.querySelectorAll('path, use')].some(part => part.getBoundingClientRect().width > 0)).length"""
    )
    assert shapes == 0


def test_the_page_does_not_scroll_sideways(opened):
    _, _, page = opened
    wide, room = page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")
    assert wide <= room


def test_letters_of_charts_can_be_read(opened):
    _, view, page = opened
    smallest = page.evaluate(
        """() => Math.min(99, ...[...document.querySelectorAll('figure svg text')].map(item =>
            item.getBoundingClientRect().height))"""
    )
    assert smallest > (7 if view in ("phone", "print") else 9)


def test_text_stands_out(opened):
    _, view, page = opened
    ink, surface, chart = page.evaluate(
        """() => {
            const text = document.querySelector('figure svg text');
            const ink = getComputedStyle(document.body);
            return [ink.color, ink.backgroundColor, text ? getComputedStyle(text).fill : ink.color];
        }"""
    )
    bright = {name: brightness(color) for name, color in (("ink", ink), ("chart", chart))}
    dark = view == "dark"
    if view == "print":
        assert surface == "rgba(0, 0, 0, 0)"  # that of the paper
    else:
        assert (brightness(surface) < 60) == dark
    for name, value in bright.items():
        assert (value > 130) == dark, name


def brightness(color: str) -> float:
    red, green, blue = map(float, re.findall(r"[\d.]+", color)[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue


def test_it_is_not_blank(opened):
    from PIL import Image

    _, view, page = opened
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), dtype=float)
    assert picture.std() > 5
    assert (picture.mean() < 100) == (view == "dark")


def test_details_open(opened):
    name, view, page = opened
    if view == "print":
        pytest.skip("paper has nothing to press")
    if name == "report":
        page.locator("summary", has_text="Log").click()
        assert page.get_by_text("last line").is_visible()
        wide, room = page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")
        assert wide <= room
    assert page.problems == []


def test_it_prints(browser, pages):
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    page.close()
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 20
