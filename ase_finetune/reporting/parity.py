"""Predictions against labels, before and after."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_finetune.reporting.axes import dots, heading
from ase_finetune.reporting.figures import Chart, Drawing, Missing, Panel, draw
from ase_finetune.reporting.measures import Array, is_nothing, set_errors
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import AFTER, BEFORE, LABEL, FrameRecord
from ase_finetune.reporting.sets import anchor, color_of, is_target, long_name, remark
from ase_finetune.reporting.tiles import digits, in_form

# A mean error below this share of the labels' range is a straight line in a parity plot.
_FLAT = 0.02


def parity(frames: FrameRecord) -> Chart | Missing:
    """Energies and forces of a set against its labels, before and after."""
    title = f"Parity: {long_name(frames)}"
    labels, before, after = (frames.forces[..., k].ravel() for k in (LABEL, BEFORE, AFTER))
    counts = np.maximum(frames.counts, 1)
    energy = frames.energy / counts[:, None] if len(counts) else np.zeros((0, 3))
    panels = []
    was, now = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    if frames.own_labels and is_nothing(now.forces) and not now.energy > 1e-2:
        return Missing(title, "predictions are those of the untouched model, which made the labels")
    if math.isfinite(now.forces):
        maes = (was.forces, now.forces)
        panels.append(_panel(frames, "forces", "Force components", "eV/Å", "meV/Å", (labels, before, after), maes))
    if math.isfinite(now.energy):
        points = (energy[:, LABEL], energy[:, BEFORE], energy[:, AFTER])
        panels.append(
            _panel(frames, "energy", "Energy per atom", "eV/atom", "meV/atom", points, (was.energy, now.energy))
        )
    if not panels:
        return Missing(title, "there are no labels with finite predictions")
    return Chart(f"parity-{anchor(frames)}", title, _caption(frames), panels)


def _caption(frames: FrameRecord) -> str:
    text = (
        "Each dot is a force component or a structure; the darker, the more of them. The closer to the line, the "
        "better. Where the errors are too small to be seen beside the range of the labels, their difference is shown "
        "instead. "
        "Numbers are mean absolute errors. "
    )
    if frames.other_reference:
        text += "Energies are as they are: the labels may be in another reference than the model."
    else:
        text += "Energies are in the reference of the model."
    if frames.own_labels:
        text += " The labels are predictions of the untouched model, which therefore lies on the line."
    return text + remark(frames)


def _panel(
    frames: FrameRecord,
    key: str,
    title: str,
    unit: str,
    small_unit: str,
    points: tuple[Array, Array, Array],
    maes: tuple[float, float],
) -> Panel:
    known = np.isfinite(points[0])
    span = float(np.ptp(points[0][known])) if known.any() else 0.0
    # The untouched model may be far off by a constant; what matters is whether the result can be seen.
    flat = 1e-3 * maes[1] < (_FLAT if key == "energy" else _FLAT / 4) * span
    if flat:
        points = (points[0], 1e3 * (points[1] - points[0]), 1e3 * (points[2] - points[0]))
    own = frames.own_labels and is_nothing(maes[0])
    texts = [f"before {digits(maes[0])} {small_unit}", f"after {digits(maes[1])} {small_unit}"]
    paint = functools.partial(
        _paint, title, unit, small_unit if flat else None, points, own, texts, LIGHT[color_of(frames)]
    )
    alt = f"{title} of {long_name(frames)}, predicted against label. Mean absolute error {', '.join(texts)}."
    return draw(f"parity-{anchor(frames)}-{key}", alt, paint, size=(4.6, 4.0), margins=(0.92, 0.2, 0.52, 0.36))


def _paint(
    title: str,
    unit: str,
    difference: str | None,
    points: tuple[Array, Array, Array],
    own: bool,
    texts: Sequence[str],
    color: str,
    drawing: Drawing,
) -> None:
    ax = drawing.ax
    x, before, after = points
    _limits(drawing, x, [after] if own else [before, after], difference is None)
    low, high = ax.get_xlim()
    line = (0.0, 0.0) if difference else (low, high)
    ax.plot((low, high), line, color=LIGHT["muted"], linewidth=0.9, zorder=2, scalex=False, scaley=False)
    size = 2.6 if len(x) > 300 else 4.2
    if not own:
        dots(ax, x, before, LIGHT["before"], size)
    dots(ax, x, after, color, size)
    ax.set_xlabel(f"label, {unit}")
    ax.set_ylabel(f"prediction − label, {difference}" if difference else f"prediction, {unit}")
    heading(ax, title)
    for row, (text, paint) in enumerate(zip(texts, (LIGHT["before"], color), strict=True)):
        if not (own and row == 0):
            ax.text(0.03, 0.96 - 0.075 * row, "●", color=paint, fontsize=9, transform=ax.transAxes, va="top", zorder=6)
            options: dict[str, Any] = {
                "color": LIGHT["ink"],
                "fontsize": 9,
                "transform": ax.transAxes,
                "va": "top",
                "zorder": 6,
            }
            ax.text(0.08, 0.96 - 0.075 * row, text, **options)


def _limits(drawing: Drawing, x: Array, ys: Sequence[Array], square: bool) -> None:
    """Room for all finite points, and the same on both axes of a parity plot."""
    known = [values[np.isfinite(x) & np.isfinite(values)] for values in ys]
    x = x[np.isfinite(x)]
    low_x, high_x = _padded(float(x.min()), float(x.max()))
    everything = np.concatenate(known) if any(len(values) for values in known) else np.zeros(1)
    low, high = float(everything.min()), float(everything.max())
    if square:
        low_x, high_x = low, high = _padded(min(low, float(x.min())), max(high, float(x.max())))
    else:
        low, high = _padded(min(low, 0.0), max(high, 0.0), above=0.3)
    drawing.ax.set_xlim(low_x, high_x)
    drawing.ax.set_ylim(low, high)


def _padded(low: float, high: float, above: float = 0.05) -> tuple[float, float]:
    room = high - low or max(abs(high), 1.0) * 0.01
    return low - 0.05 * room, high + above * room


def softening(sets: Sequence[FrameRecord]) -> Chart | Missing:
    """Slopes of predicted on reference forces, before and after, of sets with labels of a reference."""
    title = "Softening"
    others = [frames for frames in sets if not frames.own_labels]
    if sets and not others:
        return Missing(title, "all labels are the untouched model's own")
    found = [(frames, set_errors(frames, BEFORE).slope, set_errors(frames, AFTER).slope) for frames in others]
    found = [item for item in found if math.isfinite(item[1]) and math.isfinite(item[2])]
    if not found:
        return Missing(title, "there are no force labels above 1 meV/Å with finite predictions")

    def paint(drawing: Drawing) -> None:
        ax = drawing.ax
        for row, (frames, before, after) in enumerate(reversed(found)):
            ax.plot([before, after], [row, row], color=LIGHT["grid"], linewidth=3, zorder=2, solid_capstyle="round")
            ax.plot(before, row, "o", color=LIGHT["before"], markersize=7, zorder=3)
            ax.plot(after, row, "o", color=LIGHT[color_of(frames)], markersize=7, zorder=4)
            text = f"{in_form(before, '.3f')} → {in_form(after, '.3f')}"
            ax.annotate(
                text, ((before + after) / 2, row), (0, 9), textcoords="offset points", ha="center", fontsize=9,
                color=LIGHT["ink"],
            )  # fmt: skip
        ax.axvline(1.0, color=LIGHT["muted"], linewidth=0.9, zorder=1.5)
        values = [1.0, *(value for item in found for value in item[1:])]
        room = max(0.02, 0.15 * (max(values) - min(values)))
        ax.set_xlim(min(values) - room, max(values) + room)
        ax.set_ylim(-0.6, len(found) - 0.3)
        ax.set_yticks(range(len(found)), [_short(frames) for frames, *_ in reversed(found)])
        ax.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("slope of predicted on reference forces")

    alt = "; ".join(
        f"{long_name(frames)} {in_form(before, '.3f')} before, {in_form(after, '.3f')} after"
        for frames, before, after in found
    )
    caption = (
        "Grey: before; coloured: after. 1 is right. Below 1 the potential is too soft: forces, phonon frequencies and "
        "barriers come out too small. Sets whose labels the untouched model made are left out: theirs began at 1."
    )
    height = 1.0 + 0.5 * len(found)
    panel = draw(
        "softening", f"Slopes of predicted on reference forces: {alt}.", paint, size=(5.0, height),
        margins=(1.25, 0.2, 0.52, 0.12),
    )  # fmt: skip
    return Chart("softening", title, caption, [panel])


def _short(frames: FrameRecord) -> str:
    name = "target" if is_target(frames) else frames.name
    return name if len(name) <= 14 else name[:13] + "…"
