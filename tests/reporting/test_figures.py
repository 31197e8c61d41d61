from __future__ import annotations

import base64
import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
from ase.data.colors import jmol_colors
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from ase_finetune.reporting.axes import dots, heading, legend, log_axis, plain, spread_ticks
from ase_finetune.reporting.figures import SIZE, Drawing, draw, own_style
from ase_finetune.reporting.palette import COLORS, LIGHT, css_variables


def paint(drawing):
    ax = drawing.ax
    ax.plot([1, 10, 100], [1, 3, 2], color=LIGHT["target"], label="a < b & $c$")
    log_axis(ax, "x")
    heading(ax, '"<script>"')
    legend(ax)


@pytest.fixture(scope="module")
def panel():
    with own_style():
        return draw("test", 'says "<b>"', paint)


def test_svg_belongs_to_the_page(panel):
    assert panel.svg.startswith('<svg viewBox="0 0 360 241.2" role="img" aria-label="says &quot;&lt;b&gt;&quot;">')
    for foreign in ("xmlns", "xlink", "<style", "<metadata", "<?xml", "<!", "http", "<script"):
        assert foreign not in panel.svg
    assert "&lt;script&gt;" in panel.svg
    assert "a &lt; b &amp; $c$" in panel.svg
    assert panel.svg.count("<svg") == panel.svg.count("</svg>") == 1


def test_ids_are_the_panels_own(panel):
    ids = re.findall(r'\bid="([^"]*)"', panel.svg)
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("test-") for name in ids)
    for name in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', panel.svg):
        assert "".join(name) in ids


def test_colours_follow_the_theme(panel):
    assert "var(--target)" in panel.svg
    assert "var(--ink)" in panel.svg
    assert not [color for color in LIGHT.values() if color in panel.svg]


def test_png_is_a_picture_of_the_same(panel):
    assert panel.png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(panel.png[k : k + 4], "big") for k in (16, 20))
    assert (width, height) == (round(150 * SIZE[0]), pytest.approx(150 * SIZE[1], abs=1))


def test_the_same_drawing_is_the_same_text(panel):
    with own_style():
        assert draw("test", 'says "<b>"', paint).svg == panel.svg


def test_settings_of_others_neither_matter_nor_change(panel):
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False, "svg.fonttype": "path", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        with own_style():
            assert draw("test", 'says "<b>"', paint).svg == panel.svg
        assert dict(matplotlib.rcParams) == before


def test_no_two_colours_are_the_same_and_none_is_that_of_an_atom():
    lights = [light for light, _ in COLORS.values()]
    assert len(set(lights)) == len(lights)
    assert not set(lights) & {to_hex(color) for color in jmol_colors}
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for pair in COLORS.values() for color in pair)


def luminance(color: str) -> float:
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    """WCAG: 4.5 for text, 3 for what charts are made of."""
    surface, raised = COLORS["surface"][theme], COLORS["raised"][theme]
    for text in ("ink", "muted", "target", "better", "worse"):
        assert contrast(COLORS[text][theme], surface) > 4.5, text
        assert contrast(COLORS[text][theme], raised) > 4.5, text
    for mark in ("kept", "train", "third", "fourth"):
        assert contrast(COLORS[mark][theme], surface) > 3, mark


def test_variables_are_declared_for_both_themes():
    for dark in (False, True):
        for name, pair in COLORS.items():
            assert f"--{name}:{pair[dark]};" in css_variables(dark)
    assert "--better-rgb:23,121,79;" in css_variables(dark=False)


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(("low", "high"), [(-4.23517, -4.23511), (1234567, 1234590), (0.98, 2.4), (1e-9, 3e4)])
@pytest.mark.parametrize("log", [False, True])
def test_numbers_of_an_axis_do_not_touch(which, low, high, log):
    if log and low < 0:
        low, high = -high, -low
    boxes = []

    def paint_narrow(drawing):
        ax = drawing.ax
        (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
        if log:
            log_axis(ax, which)

    with own_style():
        figure = Figure(figsize=(2.4, 1.4))
        ax = figure.add_subplot()
        paint_narrow(Drawing(figure, [ax]))
        spread_ticks(figure)
        figure.draw_without_rendering()
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = sorted(axis.get_view_interval())
    for tick in axis.get_major_ticks():
        if low <= tick.get_loc() <= high and tick.label1.get_text():
            box = tick.label1.get_window_extent()
            boxes.append((box.x0, box.x1) if which == "x" else (box.y0, box.y1))
    assert boxes
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(sorted(boxes)))


def test_dots_that_fall_together_are_drawn_once():
    def many(count):
        def paint_dots(drawing):
            rng = np.random.default_rng(0)
            drawing.ax.set_xlim(-4, 4)
            drawing.ax.set_ylim(-4, 4)
            dots(drawing.ax, *rng.normal(size=(2, count)), LIGHT["target"], bins=50)

        with own_style():
            return draw("dots", "", paint_dots).svg

    few, lots = many(200), many(100_000)
    assert 150 < few.count("h0") < 300
    assert len(lots) < 45_000


def test_dots_without_length_are_drawn():
    """matplotlib would simplify them away."""

    def paint_dots(drawing):
        drawing.ax.set_xlim(0, 1)
        drawing.ax.set_ylim(0, 1)
        x = np.linspace(0.01, 0.99, 140)
        dots(drawing.ax, x, x, LIGHT["target"], bins=150)

    with own_style():
        svg = draw("dots", "", paint_dots).svg
    assert max(path.count("h0") for path in re.findall(r'd="([^"]*)"', svg)) > 120


def blue_pixels(png: bytes) -> int:
    """Those that are neither white nor grey; dots are transparent."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((picture[..., 2] - picture[..., 0] > 40).sum())


@pytest.mark.parametrize("count", [5, 80, 2000])
def test_dots_are_in_the_file_too(count):
    """Agg draws no line without a length, and snaps short ones to none."""

    def paint_dots(drawing):
        drawing.ax.set_xlim(0, 1)
        drawing.ax.set_ylim(0, 1)
        x = np.linspace(0.05, 0.95, count)
        dots(drawing.ax, x, x**2, LIGHT["target"], size=4.0)

    with own_style():
        panels = [draw("dots", "", paint_dots), draw("dots", "", paint_dots, as_image=True)]
    embedded = base64.b64decode(panels[1].svg.split("base64,")[1].split('"')[0])
    for png in (panels[0].png, embedded):
        assert blue_pixels(png) > min(30 * count, 2000)


def test_what_is_too_large_is_a_picture():
    def paint_much(drawing):
        for k in range(4000):
            drawing.ax.plot([0, 1], [k, k + 1], color=LIGHT["target"], linewidth=0.1)

    with own_style():
        panel = draw("much", "a < b", paint_much)
    assert panel.svg.startswith('<img alt="a &lt; b" src="data:image/png;base64,')


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02, "0.02"), (0.5, "0.5"), (1, "1"), (1.5, "1.5"), (300, "300"), (1e-4, "10⁻⁴"), (2e-6, "2·10⁻⁶"), (1e6, "10⁶"),
     (0, ""), (-1, "")],
)  # fmt: skip
def test_numbers_of_logarithmic_axes(value, text):
    assert plain(value) == text
