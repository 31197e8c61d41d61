"""How training went: learning curves, the EWC penalty, skipped steps, time and memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ase_finetune.reporting.axes import heading, legend, log_axis, whole_numbers
from ase_finetune.reporting.figures import Chart, Drawing, Missing, Panel, draw
from ase_finetune.reporting.measures import Array, column
from ase_finetune.reporting.palette import LIGHT
from ase_finetune.reporting.record import RunRecord
from ase_finetune.reporting.stages import Stage, stages


class Curve(NamedTuple):
    """A line over the epochs."""

    label: str
    color: str
    style: str
    marker: str
    values: Array


_LOOKS = {
    "train": ("training, running average", "train", "--", ""),
    "valid": ("validation (target)", "target", "-", "o"),
    "replay": ("replay (what must be kept)", "kept", "-", "s"),
}

#: For each kind of stage: file name, title, axis, measure, and the sets that have it.
_MEASURES: dict[str, list[tuple[str, str, str, str, tuple[str, ...]]]] = {
    "frames": [
        ("forces", "Force error", "force MAE, meV/Å", "forces_mae", ("train", "valid", "replay")),
        ("energy", "Energy error", "energy MAE, meV/atom", "energy_mae", ("train", "valid", "replay")),
        ("stress", "Stress error", "stress MAE, kbar", "stress_mae", ("train", "valid", "replay")),
    ],
    "relaxations": [
        (
            "strain",
            "Strain between end and target",
            "median strain, right minimum",
            "strain_median",
            ("train", "valid"),
        ),
        ("rmsd", "Distance between end and target", "median RMSD, right minimum, Å", "rmsd_median", ("train", "valid")),
        ("basin", "Relaxations in the right minimum", "number of pairs", "right_basin", ("valid",)),
        ("forces", "Force error on old structures", "force MAE, meV/Å", "forces_mae", ("replay",)),
        ("energy", "Energy error on old structures", "energy MAE, meV/atom", "energy_mae", ("replay",)),
    ],
}


def learning_curves(record: RunRecord) -> list[Chart | Missing]:
    """One chart for each stage."""
    found = stages(record)
    if not record.history:
        return [Missing("Learning curves", "no epoch was completed")]
    return [_learning(stage, len(found) > 1, position) for position, stage in enumerate(found)]


def _learning(stage: Stage, named: bool, position: int) -> Chart | Missing:
    title = f"Learning curves: {stage.title}" if named else "Learning curves"
    panels = []
    for key, heading_text, axis, measure, sets in _MEASURES.get(stage.name, _MEASURES["frames"]):
        curves = [Curve(*_LOOKS[name], stage.curve(name, measure)) for name in sets]
        curves = [curve for curve in curves if np.isfinite(curve.values).any()]
        if curves:
            name = f"learning-{stage.anchor}-{key}"
            panels.append(_panel(name, heading_text, axis, stage.epochs, curves, stage.best_epoch))
    if np.isfinite(column(stage.rows, "forgetting")).any():
        panels.append(_forgetting(stage))
    if not panels:
        return Missing(title, "no errors were measured")
    best = "" if stage.best_epoch is None else _BEST.format(stage.best_epoch)
    return Chart(f"learning-{stage.anchor}", title, f"{_CAPTION.format(_BEGINNING[min(position, 1)])}{best}", panels)


_CAPTION = (
    "Errors after each epoch; epoch 0 is {}. The training error is an average over the epoch while "
    "the weights move, so it lags behind. Blue should fall; orange should stay where it began."
)
_BEGINNING = ("the untouched model", "the result of the stage before")
_BEST = " The vertical line marks epoch {}, whose weights were kept."


def _panel(name: str, title: str, axis: str, epochs: Array, curves: Sequence[Curve], best: int | None) -> Panel:
    def paint(drawing: Drawing) -> None:
        ax = drawing.ax
        few = len(epochs) <= 30
        for curve in curves:
            _line(ax, epochs, curve, few)
        _scale(ax, [curve.values for curve in curves])
        if best is not None:
            ax.axvline(best, color=LIGHT["ink"], linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5)
        _epoch_axis(ax, epochs)
        ax.set_ylabel(axis)
        if axis.startswith("number"):
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        heading(ax, title)
        legend(ax, loc="best")

    ends = "; ".join(f"{curve.label} {_span(curve.values)}" for curve in curves)
    return draw(name, f"{title}, {axis}, over {len(epochs) - 1} epochs: {ends}.", paint)


def _forgetting(stage: Stage) -> Panel:
    """The relative rise of the errors on old structures, and what was allowed."""
    values = np.concatenate([[0.0], 100 * column(stage.rows, "forgetting")])
    curves = [Curve("old structures", "kept", "-", "s", values)]
    if np.isfinite(bound := 100 * stage.kept.bound):
        curves.append(Curve("allowed", "before", ":", "", np.full(len(values), bound)))
    name = f"learning-{stage.anchor}-forgetting"
    return _panel(name, "Forgotten", "rise of the error, %", stage.epochs, curves, stage.best_epoch)


def _line(ax: Axes, epochs: Array, curve: Curve, few: bool) -> None:
    known = np.isfinite(curve.values)
    lonely = int(known.sum()) == 1
    ax.plot(
        epochs[known],
        curve.values[known],
        color=LIGHT[curve.color],
        linestyle=curve.style,
        linewidth=1.6,
        marker=curve.marker or ("D" if lonely else ""),
        markersize=4 if few or lonely else 0,
        label=curve.label,
        zorder=3,
    )


def _span(values: Array) -> str:
    known = values[np.isfinite(values)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}"


def _scale(ax: Axes, values: Sequence[Array]) -> None:
    """From zero, or logarithmic where a beginning far off would hide the rest."""
    together = np.concatenate(values)
    positive = together[np.isfinite(together) & (together > 1e-3 * np.nanmax(together))]
    if positive.size > 2 and positive.max() > 25 * np.median(positive):
        log_axis(ax, "y")
        return
    low, top = float(np.nanmin(together)), float(np.nanmax(together))
    ax.set_ylim(min(0.0, 1.12 * low), 1.12 * top if top > 0 else 1.0)


def _epoch_axis(ax: Axes, epochs: Array) -> None:
    last = float(np.nanmax(epochs))
    ax.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    whole_numbers(ax)
    ax.set_xlabel("epoch")


def penalty(record: RunRecord) -> Chart | Missing:
    """The EWC penalty beside the loss of the data."""
    title = "EWC penalty against data loss"
    panels = []
    for stage in stages(record):
        data, spring = column(stage.rows, "train_loss"), column(stage.rows, "penalty")
        if not (spring > 0).any():
            continue
        curves = [
            Curve("loss of the data", LIGHT["target"], "-", "o", np.where(data > 0, data, np.nan)),
            Curve("EWC penalty", LIGHT["kept"], "-", "s", np.where(spring > 0, spring, np.nan)),
        ]
        panels.append(_penalty_panel(stage, curves))
    if not panels:
        return Missing(title, "this run had no EWC penalty, or no epoch was completed")
    caption = (
        "Both in units of the loss, at the end of each epoch. The penalty grows as parameters leave the values that "
        "old structures need. Far below the data loss it holds little; close to it, it stops learning."
    )
    return Chart("penalty", title, caption, panels)


def _penalty_panel(stage: Stage, curves: Sequence[Curve]) -> Panel:
    def paint(drawing: Drawing) -> None:
        ax = drawing.ax
        epochs = stage.epochs[1:]
        for curve in curves:
            known = np.isfinite(curve.values)
            options: dict[str, Any] = {
                "color": curve.color,
                "marker": curve.marker,
                "label": curve.label,
                "linewidth": 1.6,
            }
            ax.plot(epochs[known], curve.values[known], markersize=4 if len(epochs) <= 30 else 0, **options)
        log_axis(ax, "y")
        _epoch_axis(ax, epochs)
        ax.set_ylabel("loss")
        heading(ax, f"Per epoch: {stage.title}")
        legend(ax, loc="best")

    ratio = curves[1].values / curves[0].values
    known = ratio[np.isfinite(ratio)]
    last = f"; at the end the penalty is {known[-1]:.2g} of the data loss" if known.size else ""
    return draw(f"penalty-{stage.anchor}", f"EWC penalty and data loss over {len(stage.rows)} epochs{last}.", paint)


def cost(record: RunRecord) -> Chart | Missing:
    """Time and peak memory per epoch."""
    title = "Time and memory"
    rows = record.history
    panels = []
    for key, name, axis in (
        ("seconds", "Time", "seconds per epoch"),
        ("peak_memory_gb", "Peak memory", "GB"),
    ):
        values = column(rows, key)
        if np.isfinite(values).any():
            panels.append(_bars(key.replace("_", "-"), name, axis, values, "third"))
    if not panels:
        return Missing(title, "no epoch was completed")
    total = float(np.nansum(column(rows, "seconds")))
    caption = (
        f"{len(rows)} epochs took {duration(total)}. Memory is that of the GPU where there is one, or else of the "
        "whole process, and never falls within a process. Stages follow one another."
    )
    return Chart("cost", title, caption, panels)


def skipped(record: RunRecord) -> Chart | Missing:
    """Steps and rollouts that could not be used."""
    title = "Skipped steps"
    panels = []
    for key, name in (("skipped_steps", "Skipped steps"), ("train_skipped", "Rollouts left out")):
        values = column(record.history, key)
        if (values > 0).any():
            panels.append(_bars(key.replace("_", "-"), name, "number per epoch", values, "worse"))
    if not panels:
        return Missing(title, "no step was skipped")
    caption = "A step whose loss or gradient is not finite is not made. The log names the structures."
    return Chart("skipped", title, caption, panels)


def _bars(name: str, title: str, axis: str, values: Array, color: str) -> Panel:
    alt = f"{title}, {axis}: {np.nanmin(values):.3g} to {np.nanmax(values):.3g} over {len(values)} epochs."
    return draw(name, alt, functools.partial(_paint_bars, title, axis, values, color))


def _paint_bars(title: str, axis: str, values: Array, color: str, drawing: Drawing) -> None:
    ax = drawing.ax
    epochs = np.arange(1, len(values) + 1)
    if len(values) <= 60:
        ax.bar(epochs, np.nan_to_num(values), width=0.7, color=LIGHT[color], zorder=3)
        ax.set_xlim(0.3, max(len(values), 4) + 0.7)
    else:
        ax.plot(epochs, values, color=LIGHT[color], linewidth=1.2)
    whole_numbers(ax)
    if len(values) < 4:
        ax.set_xticks(epochs)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("epoch of the run")
    ax.set_ylabel(axis)
    heading(ax, title)


def duration(seconds: float) -> str:
    """A time span in the largest fitting units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
