"""From a drawing to pictures: SVG that becomes part of the page, and PNG for slides."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ase_finetune.reporting.axes import dress, spread_ticks
from ase_finetune.reporting.markup import printable, text
from ase_finetune.reporting.palette import with_variables

#: Width and height of a panel in inches: on a phone its letters have the size of small print.
SIZE = (5.0, 3.35)

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ase_finetune",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.unicode_minus": True,
    "path.simplify": True,
}

# Drawings with more letters are pictures in the page, too: they would be slow to show.
_LARGE = 120_000

# Of matplotlib's settings, those that are no matter of style.
_NOT_STYLE = ("backend", "toolbar", "interactive", "webagg", "datapath", "savefig.directory", "date.epoch", "figure.")


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes
    ----------
    name
        Of its PNG file, without ending.
    alt
        What it shows, in words and numbers, for those who do not see it.
    svg
        Part of a page.
    png
        The same as a file of its own.
    """

    name: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Chart:
    """A finding: pictures side by side, or HTML of its own.

    Attributes
    ----------
    key
        Its anchor in the page.
    title
        Above it.
    caption
        How to read it.
    panels
        The pictures.
    body
        HTML after the pictures, such as a table.
    shown
        HTML instead of the pictures, which are then files only.
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel] = ()
    body: str = ""
    shown: str | None = None


@dataclass(frozen=True)
class Missing:
    """A chart that cannot be drawn, and why."""

    title: str
    reason: str


@dataclass
class Drawing:
    """What a function draws on: axes in the style of the house."""

    figure: Figure
    axes: list[Axes] = field(default_factory=list)

    @property
    def ax(self) -> Axes:
        """The first axes."""
        return self.axes[0]


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with known settings, whatever style is in use elsewhere; put back at the end."""
    default = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(_NOT_STYLE)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        # File names may be in scripts that the fonts of PNG files lack; browsers have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        with matplotlib.rc_context(cast("Any", {**default, **_SETTINGS})):
            yield


def draw(
    name: str,
    alt: str,
    paint: Callable[[Drawing], None],
    *,
    size: tuple[float, float] = SIZE,
    columns: int = 1,
    widths: Sequence[float] | None = None,
    margins: tuple[float, float, float, float] = (0.72, 0.18, 0.52, 0.36),
    as_image: bool = False,
) -> Panel:
    """A panel from what a function paints. Call it inside :func:`own_style`.

    Parameters
    ----------
    name, alt
        As of :class:`Panel`.
    paint
        Is given the drawing.
    size
        Inches.
    columns, widths
        Axes side by side, and their relative widths.
    margins
        Left, right, bottom and top, in inches.
    as_image
        Show the PNG in the page, too, on white in light and dark; what has very many parts is in any case.
    """
    figure = Figure(figsize=size)
    figure.patch.set_facecolor("none")
    left, right, bottom, top = margins
    grid = figure.add_gridspec(
        1,
        columns,
        width_ratios=widths,
        left=left / size[0],
        right=1 - right / size[0],
        bottom=bottom / size[1],
        top=1 - top / size[1],
        wspace=0.1,
    )
    drawing = Drawing(figure, [figure.add_subplot(grid[0, column]) for column in range(columns)])
    for ax in drawing.axes:
        dress(ax)
    paint(drawing)
    spread_ticks(figure)
    png = _png(figure)
    svg = "" if as_image else _svg(figure, name, alt)
    return Panel(name, alt, svg if svg and len(svg) < _LARGE else _image(png, alt), png)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


def _image(png: bytes, alt: str) -> str:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'


def _svg(figure: Figure, name: str, alt: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_the_page(file.getvalue(), name, alt)


_NUMBER = re.compile(r"(-?\d+\.\d{2})\d+")
_GEOMETRY = re.compile(r'( (?:d|x|y|points|transform)=")([^"]*)(")')


def _for_the_page(drawn: str, name: str, alt: str) -> str:
    """Without what only files need, with ids of its own, in the colours of the page."""
    drawn = printable(drawn[drawn.index("<svg") :])
    for foreign in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->"):
        drawn = re.sub(foreign, "", drawn, flags=re.DOTALL)
    opening, rest = drawn.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", rest)
    rest = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', rest)
    rest = _GEOMETRY.sub(lambda found: found[1] + _NUMBER.sub(r"\1", found[2]) + found[3], rest)
    rest = re.sub(r"\n\s*", "\n", rest)
    rest = re.sub(r"(font: [^;\"']*px) [^;\"]*", r"\1 sans-serif", rest)  # the page has its own
    rest = re.sub(r"M (\S+ \S+) ?\nL \1(?=\s|\")", r"M\1h0", rest)  # a dot
    attributes = f'{box[0] if box else ""} role="img" aria-label="{text(alt)}"'
    return with_variables(f"<svg {attributes}>{rest.strip()}")
