"""The picture of a study on relaxations."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.science.measures import Results, mean, value
from benchmarks.science.palette import COLOURS, MARKERS
from benchmarks.science.plans import Plan
from benchmarks.science.relaxed import RIGHT, Change, basis, by_pair, changed

Runs = list[dict[str, Any]]


def draw_relaxations(plan: Plan, results: Results, untouched: dict[str, Any]) -> Any:
    """Structural error against what is forgotten; beside it against the number of pairs, or else pair by pair."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    before = next(runs for case, runs in results.items() if not case.options)
    groups: dict[str, list[Runs]] = {}
    for case, runs in results.items():
        if case.options:
            groups.setdefault(case.group or case.name, []).append(runs)
    several = len({runs[0]["train_pairs"] for cases in groups.values() for runs in cases}) > 1
    for number, (group, cases) in enumerate(groups.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
        changes = [(runs, changed(runs, before, "structure", basis(before))) for runs in cases]
        told = [(runs, change) for runs, change in changes if change is not None]
        energies = [mean([value(run, "mptrj", "energy_mae") for run in runs])[0] for runs, _ in told]
        _bars(axes[0], energies, [change for _, change in told], linestyle="none", label=group, **look)
        if several:
            counts = [mean([float(run["train_pairs"]) for run in runs])[0] for runs, _ in told]
            _bars(axes[1], counts, [change for _, change in told], **look)
        else:
            _pair_by_pair(axes[1], before, cases[0], look)
    axes[0].axvline(value(untouched, "mptrj", "energy_mae"), color="black", linewidth=0.8, linestyle="--")
    axes[0].axhline(0, color="black", linewidth=0.8)
    axes[0].set_xlabel("MPtrj energy MAE, meV/atom (dashed: untouched; right: more is forgotten)")
    axes[0].set_ylabel("RMSD + strain of held-out structures: change of the median, %")
    if several:
        axes[1].axhline(0, color="black", linewidth=0.8)
        axes[1].set_xlabel("pairs trained on")
    else:
        ends = (RIGHT, axes[1].get_xlim()[1])
        axes[1].plot(ends, ends, color="black", linewidth=0.8)
        axes[1].set_yscale("log")
        axes[1].set_xlabel("RMSD + strain of each held-out structure, untouched")
        axes[1].set_ylabel("the same after training (below the line: better)")
    axes[1].set_xscale("log")
    for axis in axes:
        axis.grid(visible=True, which="both", linewidth=0.3)
    figure.suptitle(f"{plan.title}; bars: 90 % bootstrap over pairs", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def _bars(axis: Axes, positions: list[float], changes: list[Change], **look: Any) -> None:
    """Changes with their intervals, in the order of their positions."""
    ordered = sorted(zip(positions, changes, strict=True))
    middles = [change.percent for _, change in ordered]
    below = [change.percent - change.low for _, change in ordered]
    above = [change.high - change.percent for _, change in ordered]
    places = [position for position, _ in ordered]
    axis.errorbar(places, middles, yerr=[below, above], linewidth=0.9, elinewidth=0.5, capsize=2, **look)


def _pair_by_pair(axis: Axes, before: Runs, after: Runs, look: dict[str, Any]) -> None:
    """Error of each pair after training against that before; what is right is drawn where that begins."""
    old, new = by_pair(before, basis(before)), by_pair(after, basis(before))
    both = [name for name in old if name in new]
    points = [[max(RIGHT, errors[name]["structure"]) for name in both] for errors in (old, new)]
    axis.plot(*points, linestyle="none", markersize=5, alpha=0.8, **look)
