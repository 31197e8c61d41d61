"""What several runs gained against what they forgot."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from ase_finetune.reporting.axes import heading
from ase_finetune.reporting.figures import Drawing, Panel, draw
from ase_finetune.reporting.palette import LIGHT


class Point(NamedTuple):
    """A run in the picture.

    Attributes
    ----------
    name
        Its label.
    forgotten
        The rise of an error on old structures; below zero it fell.
    gained
        The fall of an error on the target.
    method
        Decides on the marker.
    """

    name: str
    forgotten: float
    gained: float
    method: str


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other point beats, by what was forgotten.

    Parameters
    ----------
    points
        What was forgotten (less is better) and gained (more is better). A point is beaten by one that is at least as
        good in both and better in one. Points that are not finite are never on the front.
    """
    finite = [k for k, point in enumerate(points) if all(map(math.isfinite, point))]

    def beaten(k: int) -> bool:
        x, y = points[k]
        others = (points[other] for other in finite)
        return any(u <= x and v >= y and (u < x or v > y) for u, v in others)

    return sorted((k for k in finite if not beaten(k)), key=lambda k: points[k])


#: Marker and colour of each method.
_LOOKS = {
    "naive": ("o", "before"),
    "replay": ("s", "third"),
    "ewc": ("^", "fourth"),
    "reewc": ("D", "target"),
}


def pareto_panel(name: str, title: str, unit: tuple[str, str], points: Sequence[Point]) -> Panel | None:
    """Gained against forgotten; ``None`` if no run has both.

    Parameters
    ----------
    name, title
        Of the picture.
    unit
        Of what was gained and of what was forgotten.
    points
        The runs.
    """
    known = [point for point in points if math.isfinite(point.forgotten) and math.isfinite(point.gained)]
    if not known:
        return None
    words = "; ".join(f"{p.name} gained {p.gained:.3g}, forgot {p.forgotten:.3g}" for p in known)
    alt = f"{title}: gained in {unit[0]}, forgotten in {unit[1]}. {words}."
    paint = functools.partial(_paint, title, unit, known)
    return draw(name, alt, paint, size=(5.0, 4.0))


def _paint(title: str, unit: tuple[str, str], points: Sequence[Point], drawing: Drawing) -> None:
    ax = drawing.ax
    places = [(point.forgotten, point.gained) for point in points]
    _limits(ax, [(0.0, 0.0), *places])
    front = [(0.0, 0.0), *(places[k] for k in pareto_front([*places, (0.0, 0.0)]) if k < len(places))]
    line = np.array(sorted(front))
    ax.plot(line[:, 0], line[:, 1], color=LIGHT["grid"], linewidth=5, zorder=1.8, drawstyle="steps-post")
    ax.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1.5)
    ax.axvline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1.5)
    ax.plot(0, 0, "+", color=LIGHT["ink"], markersize=11, markeredgewidth=1.8, zorder=3)
    for point, (x, y) in zip(points, places, strict=True):
        marker, color = _LOOKS.get(point.method.split("+")[-1], ("P", "kept"))
        ax.plot(x, y, marker, color=LIGHT[color], markersize=7.5, zorder=4)
    _label(drawing, [(0.0, 0.0), *places], ["untouched", *(_short(point.name) for point in points)])
    ax.set_xlabel(f"forgotten on old structures, {unit[1]}   (less is better)")
    ax.set_ylabel(f"gained on the target, {unit[0]}")
    heading(ax, title)


def _limits(ax: Axes, places: Sequence[tuple[float, float]]) -> None:
    x, y = (np.array([place[axis] for place in places]) for axis in (0, 1))
    for values, set_limits in ((x, ax.set_xbound), (y, ax.set_ybound)):
        room = float(np.ptp(values)) or 1.0
        set_limits(float(values.min()) - 0.12 * room, float(values.max()) + 0.16 * room)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"  # the end says whether it is unchanged


# Where a label may be beside its point, in points; and how it hangs there.
_BESIDE = [
    (dx * far, dy * far) for far in (1.0, 1.8, 2.8, 4.0) for dx, dy in
    ((9, 0), (8, 8), (8, -8), (0, 12), (0, -12), (-8, 8), (-8, -8), (-9, 0))
]  # fmt: skip


class Box(NamedTuple):
    """A rectangle, in points."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: Box) -> float:
        """Common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)


def place_labels(
    places: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box
) -> list[tuple[float, float]]:
    """Where labels go, one after the other, so that they cover neither points nor each other.

    Parameters
    ----------
    places
        The points.
    sizes
        Width and height of the labels.
    frame
        What they should not leave.

    Returns
    -------
    The lower left corner of each label. Where there is no room, the place that covers least.
    """
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    corners = []
    for (x, y), (width, height) in zip(places, sizes, strict=True):
        candidates = []
        for dx, dy in _BESIDE:
            left = x + dx - (0.0 if dx > 0 else width if dx < 0 else width / 2)
            candidates.append(Box(left, y + dy - height / 2, left + width, y + dy + height / 2))
        costs = [
            sum(map(box.overlap, taken)) + 3 * (width * height - box.overlap(frame)) + 0.3 * k
            for k, box in enumerate(candidates)
        ]
        best = candidates[int(np.argmin(costs))]
        taken.append(best)
        corners.append((best.left, best.low))
    return corners


def _label(drawing: Drawing, places: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    ax = drawing.ax
    to_points = 72.0 / drawing.figure.dpi
    spots = [tuple(ax.transData.transform(place) * to_points) for place in places]
    corners = [tuple(ax.transAxes.transform(corner) * to_points) for corner in ((0, 0), (1, 1))]
    # A letter is about half as wide as high.
    sizes = [(5.1 * len(name), 10.5) for name in names]
    for (x, y), spot, corner, name, size in zip(
        places, spots, place_labels(spots, sizes, Box(*corners[0], *corners[1])), names, sizes, strict=True
    ):
        offset = (corner[0] - spot[0], corner[1] - spot[1])
        far = math.hypot(offset[0] + size[0] / 2, offset[1] + size[1] / 2) > 22 + size[0] / 2
        arrow = {"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6} if far else None
        ax.annotate(
            name, (x, y), offset, textcoords="offset points", fontsize=8.8, color=LIGHT["ink"], va="bottom",
            arrowprops=arrow, zorder=6, annotation_clip=False,
        )  # fmt: skip
