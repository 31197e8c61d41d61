"""The style of the house on matplotlib's axes, and what it lacks: dots by the thousand, plain numbers on log axes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ase_finetune.reporting.measures import Array
from ase_finetune.reporting.palette import LIGHT

# Between two labels beside each other, in points.
_ROOM = 6.0

# Length of a dot as a share of the width of its axes: too little to be seen, but PNGs lack lines without any.
_DOT = 4e-7


def dress(ax: Axes) -> None:
    """Thin lines in the colours of the page."""
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["muted"])
        spine.set_linewidth(0.8)
    ax.tick_params(colors=LIGHT["muted"], labelsize=9, width=0.8, length=3)
    ax.tick_params(which="minor", width=0.5, length=2, color=LIGHT["muted"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(LIGHT["ink"])
        axis.label.set_fontsize(9.5)
    ax.grid(visible=True, color=LIGHT["grid"], linewidth=0.7)
    ax.set_axisbelow(True)


def heading(ax: Axes, words: str) -> None:
    """The title of a panel, over its left edge."""
    ax.set_title(words, loc="left", fontsize=10, color=LIGHT["ink"], fontweight="bold", y=1.0, pad=7)


def legend(ax: Axes, **options: Any) -> None:
    """A legend without a frame, where there is something to tell apart."""
    if ax.get_legend_handles_labels()[0]:
        found = ax.legend(frameon=False, fontsize=9, labelcolor=LIGHT["ink"], handlelength=1.8, **options)
        found.set_zorder(5)


def log_axis(ax: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 and math.isfinite(high / low) else 3.0
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 0.9 else (1.0, 2.0, 5.0) if decades < 2.4 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def whole_numbers(ax: Axes) -> None:
    """Ticks along x at whole numbers only."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def spread_ticks(figure: Figure) -> None:
    """Fewer ticks on each axis whose labels would touch, whatever the numbers are; named ticks stay as they are."""
    for ax in (ax for ax in figure.axes if ax.axison):
        for axis in (ax.xaxis, ax.yaxis):
            locator = axis.get_major_locator()
            sparser = _SPARSER_LOG if isinstance(locator, LogLocator) else _SPARSER
            if not isinstance(locator, (MaxNLocator, LogLocator)) or _spread(axis, figure) != "too close":
                continue
            for options in sparser:
                locator.set_params(**options)
                if _spread(axis, figure) == "well":
                    break


# What thins out ticks, in the order in which it is tried.
_SPARSER: list[dict[str, Any]] = [{"nbins": most} for most in (6, 5, 4, 3, 2)]
_SPARSER_LOG: list[dict[str, Any]] = [
    {"subs": (1.0, 2.0, 5.0)}, {"subs": (1.0, 3.0)}, {"subs": (1.0,)}, {"numticks": 6}, {"numticks": 4},
]  # fmt: skip


def _spread(axis: Axis, figure: Figure) -> str:
    """``"too close"``, ``"too few"`` or ``"well"``: of the labels of an axis."""
    figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]
    across = isinstance(axis, XAxis)
    ends = sorted((box.x0, box.x1) if across else (box.y0, box.y1) for box in boxes)
    room = (_ROOM if across else 0.0) * figure.dpi / 72
    if any(after[0] < before[1] + room for before, after in pairwise(ends)):
        return "too close"
    return "well" if len(ends) > 1 else "too few"


def plain(value: float) -> str:
    """A number of a logarithmic axis: 0.02, 5, 300, 10⁻⁶."""
    if value <= 0 or not math.isfinite(value):
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 4:
        return f"{value:.{max(0, -exponent)}f}" if abs(value / 10.0**exponent % 1) < 1e-6 else f"{value:.2g}"
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    lead = round(value / 10.0**exponent)
    return f"10{digits}" if lead == 1 else f"{lead}·10{digits}"


def dots(ax: Axes, x: Array, y: Array, color: str, size: float = 2.6, bins: int = 150) -> None:
    """Many points in few bytes: those that fall on the same spot are drawn once, and darker the more they are.

    The limits of the axes have to be set before.
    """
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    inside = (x >= left) & (x <= right) & (y >= low) & (y <= high)
    if not inside.any():
        return
    counts, edges_x, edges_y = np.histogram2d(x[inside], y[inside], bins=bins, range=((left, right), (low, high)))
    middle_x, middle_y = (0.5 * (edges[1:] + edges[:-1]) for edges in (edges_x, edges_y))
    faint = 0.35 if inside.sum() > 300 else 0.75
    for least, most, alpha in ((1, 2, faint), (2, 6, max(faint, 0.6)), (6, math.inf, 0.95)):
        column, row = np.nonzero((counts >= least) & (counts < most))
        if not column.size:
            continue
        ends = np.stack([middle_x[column], middle_y[row]], axis=1).repeat(2, axis=0)
        ends[1::2, 0] += _DOT * (right - left)
        ax.add_patch(
            PathPatch(
                lines(ends),
                edgecolor=color,
                facecolor="none",
                linewidth=size,
                capstyle="round",
                alpha=alpha,
                zorder=3,
                snap=False,  # whole pixels would take their length away
            )
        )


def lines(ends: Array) -> Outline:
    """One outline of many lines, which costs less than many outlines.

    Parameters
    ----------
    ends
        (2n, 2) start and end of each line, one after the other.
    """
    outline = Outline(ends, np.tile(np.array([Outline.MOVETO, Outline.LINETO], dtype=np.uint8), len(ends) // 2))
    outline.should_simplify = False  # it would drop the shortest lines, which are dots
    return outline
