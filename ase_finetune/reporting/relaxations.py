"""Where relaxations end, before and after training through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_finetune.reporting.axes import heading, legend, log_axis, whole_numbers
from ase_finetune.reporting.figures import Chart, Drawing, Missing, Panel, draw
from ase_finetune.reporting.measures import Array, formatted, median, number
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import PairRecord
from ase_finetune.reporting.structures import worst

#: name: title, unit
_DISTANCES = {"delta_q": ("Delta Q", "Å √amu"), "rmsd": ("RMSD", "Å"), "strain": ("Cell strain", "")}

# Pairs that fit into a dumbbell plot.
_DUMBBELLS = 45


def relaxation_charts(pairs: PairRecord | None) -> list[Chart | Missing]:
    """All charts of relaxations; none of a run without any."""
    if pairs is None:
        return []
    if not pairs.descriptions:
        return [Missing("Relaxations of validation pairs", "there were no validation pairs"), gradient_norms(pairs)]
    return [distances(pairs), summary(pairs), worst(pairs), gradient_norms(pairs)]


def values(errors: Sequence[Mapping[str, Any]], name: str) -> Array:
    """One measure of all pairs; NaN for those that failed."""
    return np.array([number(error.get(name)) for error in errors], dtype=np.float64)


def distances(pairs: PairRecord) -> Chart | Missing:
    """Delta Q of every pair, before and after."""
    title = "Where relaxations end: Delta Q of every pair"
    before, after = values(pairs.before, "delta_q"), values(pairs.after, "delta_q")
    if not (np.isfinite(before) | np.isfinite(after)).any():
        return Missing(title, "all relaxations failed")
    fell = int((after < before).sum())
    both = int((np.isfinite(before) & np.isfinite(after)).sum())
    alt = (
        f"Delta Q of {len(before)} pairs: median {median(before):.3g} before, {median(after):.3g} after; smaller for "
        f"{fell} of {both}."
    )
    order = np.argsort(np.where(np.isnan(before), np.inf, before), kind="stable")
    height = 3.6 if len(order) > _DUMBBELLS else min(1.2 + 0.16 * len(order), 7.5)
    paint = functools.partial(_paint_distances, before[order], after[order])
    panel = draw("delta-q", alt, paint, size=(5.0, height))
    lost = [f"{_lost(errors)} {when}" for errors, when in ((pairs.before, "before"), (pairs.after, "after"))]
    caption = (
        "Mass-weighted distance between the end of the relaxation and the reference's relaxed structure, sorted by its "
        f"value before; shorter is better. Relaxations that failed have no dot: {lost[0]}, {lost[1]}."
    )
    return Chart("delta-q", title, caption, [panel])


def _lost(errors: Sequence[Mapping[str, Any]]) -> int:
    return sum(error.get("failure") is not None for error in errors)


def _paint_distances(before: Array, after: Array, drawing: Drawing) -> None:
    ax = drawing.ax
    rows = np.arange(len(before))
    many = len(rows) > _DUMBBELLS
    x, y = (rows, None) if many else (None, rows)
    if not many:
        for row in rows[np.isfinite(before) & np.isfinite(after)]:
            better = after[row] <= before[row]
            color = LIGHT["target" if better else "worse"]
            ax.plot([before[row], after[row]], [row, row], color=color, linewidth=1.6, alpha=0.5, zorder=2)
    for points, label, color, size in ((before, "before", "before", 6.5), (after, "after", "target", 4.8)):
        options: dict[str, Any] = {
            "color": LIGHT[color],
            "label": label,
            "markersize": 2.5 if many else size,
            "zorder": 3,
        }
        ax.plot(points if x is None else x, points if y is None else y, "o", linestyle="", **options)
    axis = "y" if many else "x"
    positive = np.concatenate([before, after])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if positive.size and positive.max() > 20 * positive.min():
        log_axis(ax, axis)
    else:
        (ax.set_ylim if many else ax.set_xlim)(0, 1.08 * float(positive.max()) if positive.size else 1.0)
    label = "Delta Q, Å √amu"
    if many:
        ax.set_xlabel("pair, sorted")
        ax.set_ylabel(label)
    else:
        ax.set_xlabel(label)
        ax.set_ylabel("pairs, sorted")
        ax.set_yticks([])
        ax.set_ylim(-0.8, len(rows) - 0.2)
    heading(ax, "Delta Q, before and after")
    legend(ax, loc="upper left" if many else "lower right")


def summary(pairs: PairRecord) -> Chart | Missing:
    """Distances, volumes and outcomes of all pairs, as panels and as a table."""
    panels = []
    for name, (title, unit) in _DISTANCES.items():
        panel = _distribution(name, title, unit, values(pairs.before, name), values(pairs.after, name))
        if panel is not None and name != "delta_q":
            panels.append(panel)
    volume = [100 * np.expm1(values(errors, "log_volume")) for errors in (pairs.before, pairs.after)]
    panel = _distribution("volume", "Volume error", "%", *volume)
    if panel is not None:
        panels.append(panel)
    caption = (
        "Share of the pairs (upwards) whose error is at most that on the axis: the further left and up, the better. "
        "Of all pairs that did not fail; of the volume, the size of the error. The right minimum is the one that the "
        "reference's structure itself relaxes to."
    )
    return Chart("relaxed", "Relaxed structures: distance, strain, volume", caption, panels, _summary_table(pairs))


def _distribution(name: str, title: str, unit: str, before: Array, after: Array) -> Panel | None:
    before, after = (np.sort(np.abs(v[np.isfinite(v)])) for v in (before, after))
    if not before.size or not after.size:
        return None
    words = f"median {np.median(before):.3g} before, {np.median(after):.3g} after"

    def paint(drawing: Drawing) -> None:
        ax = drawing.ax
        # The first one is wider, so that it is seen where both are the same.
        for points, label, color, width in ((before, "before", "before", 3.6), (after, "after", "target", 1.7)):
            share = 100 * np.arange(1, len(points) + 1) / len(points)
            named = f"{label}, median {np.median(points):.3g}"
            ax.plot(np.r_[points[0], points], np.r_[0.0, share], drawstyle="steps-post", color=LIGHT[color],
                    linewidth=width, label=named)  # fmt: skip
        together = np.concatenate([before, after])
        if together.min() > 0 and together.max() > 30 * together.min():
            log_axis(ax, "x")
        else:
            ax.set_xlim(left=0)
        ax.set_ylim(0, 103)
        ax.set_xlabel(f"{title}, {unit}" if unit else title)
        ax.set_ylabel("pairs, %")
        heading(ax, title)
        legend(ax, loc="best")

    return draw(f"relaxed-{name}", f"{title} of the pairs: {words}{f' {unit}' if unit else ''}.", paint)


def outcome(errors: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians and counts over pairs.

    Returns
    -------
    ``delta_q`` (Å √amu), ``rmsd`` (Å), ``strain`` and ``volume`` (%), medians of the absolute values over those in the
    right minimum, as in the history, and the same with ``all_`` before over those that did not fail; ``steps``, the
    median of those; ``right_basin``, ``converged``, ``failed`` and ``total``, numbers of pairs.
    """
    alive = [error for error in errors if error.get("failure") is None]
    inside = [error for error in alive if error.get("right_basin")]
    found = {}
    for start, chosen in (("", inside), ("all_", alive)):
        for name in ("delta_q", "rmsd", "strain"):
            found[start + name] = median(abs(v) for v in values(chosen, name))
        found[f"{start}volume"] = median(100 * abs(math.expm1(v)) for v in values(chosen, "log_volume"))
    found["steps"] = median(number(error.get("steps")) for error in alive)
    found |= {"right_basin": float(len(inside)), "converged": float(sum(bool(e.get("converged")) for e in errors))}
    return found | {"failed": float(_lost(errors)), "total": float(len(errors))}


@dataclass(frozen=True)
class Comparable:
    """The same pairs before and after, so that medians over them can be compared.

    Attributes
    ----------
    which
        Which ones, in words: in the right minimum before and after; without any, all that did not fail.
    before, after
        Their errors.
    right_before, right_after
        How many of all pairs end in the right minimum.
    """

    which: str
    before: list[Mapping[str, Any]]
    after: list[Mapping[str, Any]]
    right_before: int
    right_after: int

    def values(self, name: str) -> tuple[Array, Array]:
        """A measure of the pairs that have it before and after."""
        before, after = np.abs(values(self.before, name)), np.abs(values(self.after, name))
        known = np.isfinite(before) & np.isfinite(after)
        return before[known], after[known]


def comparable(pairs: PairRecord) -> Comparable:
    """Pairs whose ends before and after can be compared."""
    both = [
        (b, a) for b, a in zip(pairs.before, pairs.after, strict=True) if not (b.get("failure") or a.get("failure"))
    ]
    right = [(b, a) for b, a in both if b.get("right_basin") and a.get("right_basin")]
    chosen, which = (right, "in the right minimum before and after") if right else (both, "that did not fail")
    counts = [int(outcome(errors)["right_basin"]) for errors in (pairs.before, pairs.after)]
    return Comparable(which, [b for b, _ in chosen], [a for _, a in chosen], *counts)


_COUNTS = (
    ("steps", "steps to convergence, median"),
    ("right_basin", "in the right minimum"),
    ("converged", "converged"),
    ("failed", "failed"),
    ("total", "pairs"),
)
_MEDIANS = (
    ("delta_q", "Delta Q, Å √amu"),
    ("rmsd", "RMSD, Å"),
    ("strain", "cell strain"),
    ("volume", "volume error, %"),
)


def _summary_table(pairs: PairRecord) -> str:
    before, after = outcome(pairs.before), outcome(pairs.after)
    rows = [(name, f"median {title}, in the right minimum", ".3g") for name, title in _MEDIANS]
    rows += [(f"all_{name}", f"median {title}, all that did not fail", ".3g") for name, title in _MEDIANS]
    rows += [(name, title, ".0f") for name, title in _COUNTS]
    # Each column is over its own pairs; the tiles are over the same ones.
    lines = "".join(
        f"<tr><th scope=row>{title}<td>{formatted(before[name], form)}<td>{formatted(after[name], form)}</tr>"
        for name, title, form in rows
    )
    return (
        '<div class="scroll"><table class="wide"><thead><tr><th><th>before<th>after</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def gradient_norms(pairs: PairRecord) -> Chart | Missing:
    """Norm of the loss's gradient on its way back through the steps."""
    title = "Gradient along the trajectory"
    norms = np.array(pairs.gradient_norms, dtype=np.float64, ndmin=2)
    norms = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    known = np.isfinite(norms).any(axis=0) if norms.size else np.zeros(0, bool)
    if not known.any():
        return Missing(title, "it was not recorded")
    steps = np.flatnonzero(known)
    low, middle, high = np.nanquantile(norms[:, known], (0.1, 0.5, 0.9), axis=0)
    ratio = middle[0] / middle[-1]

    def paint(drawing: Drawing) -> None:
        ax = drawing.ax
        ax.fill_between(steps, low, high, color=LIGHT["target"], alpha=0.2, linewidth=0, label="10 to 90 %")
        marker = "o" if len(steps) <= 30 else ""
        ax.plot(steps, middle, color=LIGHT["target"], marker=marker, markersize=3.5, linewidth=1.6, label="median")
        log_axis(ax, "y")
        whole_numbers(ax)
        ax.set_xlabel("step of the relaxation")
        ax.set_ylabel("norm of the gradient")
        heading(ax, f"{norms.shape[0]} rollouts, final weights")
        legend(ax, loc="best")

    alt = f"Gradient norm over {len(steps)} steps: at the first one {ratio:.2g} times that at the last."
    caption = (
        "Norm of the gradient of the loss by the coordinates before each step. The gradient comes from the right. "
        "Growing to the left, it explodes: early steps decide, and clipping (clip_growth) is needed. Falling, early "
        "steps teach little."
    )
    return Chart("gradient", title, caption, [draw("gradient-norm", alt, paint)])
