"""Pictures of studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a display

from benchmarks.science.measures import Results, change, gained, mean, value, with_averages
from benchmarks.science.palette import COLOURS, MARKERS
from benchmarks.science.plans import Plan
from benchmarks.science.relaxed_pictures import draw_relaxations


def draw(plan: Plan, results: Results, folder: Path) -> Path | None:
    """The picture that the plan asks for, of the results there are; ``None`` without any."""
    untouched = next((runs[0] for case, runs in results.items() if not case.options), None)
    how = _KINDS.get(plan.picture.get("kind", ""))
    if untouched is None or len(results) < 2 or how is None:
        return None
    figure = how(plan, results, untouched)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"science_{plan.study}.png"
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def _pareto(plan: Plan, results: Results, untouched: dict[str, Any]) -> Any:
    """Gained on the target against forgotten on MPtrj, forces and energies; a colour per group."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained", sharey=True)
    target = plan.picture["target"]
    groups: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}
    for case, runs in with_averages(results).items():
        if case.options:
            groups.setdefault(case.group or case.name, []).append((case.name, runs))
    for axis, measure, name in zip(axes, ("forces_mae", "energy_mae"), ("force", "energy"), strict=True):
        for number, (group, cases) in enumerate(groups.items()):
            points = []
            for label, runs in cases:
                x, dx = mean([100 * change(run, untouched, "mptrj", measure) for run in runs])
                y, dy = mean([100 * gained(run, untouched, target) for run in runs])
                points.append((x, y, 0.0 if dx != dx else dx, 0.0 if dy != dy else dy, label))
            points.sort()
            look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
            xs, ys, dxs, dys, _ = zip(*points, strict=True)
            axis.errorbar(xs, ys, xerr=dxs, yerr=dys, label=group, linewidth=0.9, markersize=6, capsize=2, **look)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"MPtrj {name} error: rise in per cent (right: more is forgotten)")
        axis.grid(visible=True, linewidth=0.3)
        bound = plan.picture.get("most_forgotten")
        if bound is not None:
            axis.set_xlim(right=min(axis.get_xlim()[1], bound))
    axes[0].set_ylabel(f"{target} force error: fall in per cent (up: more is gained)")
    figure.suptitle(plan.title, fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def _learning(plan: Plan, results: Results, untouched: dict[str, Any]) -> Any:
    """Errors against the number of training frames; a colour per group."""
    target = plan.picture["target"]
    panels = [
        (target, "forces_mae", f"{target} force MAE, meV/Å"),
        (target, "energy_mae_aligned", f"{target} energy MAE, meV/atom, after the best offset"),
        ("mptrj", "forces_mae", "MPtrj force MAE, meV/Å"),
        ("mptrj", "energy_mae", "MPtrj energy MAE, meV/atom"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.2), layout="constrained")
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    for case, runs in results.items():
        if case.options:
            groups.setdefault(case.group or case.name, []).append(runs)
    for axis, (of, measure, label) in zip(axes, panels, strict=True):
        for number, (group, cases) in enumerate(groups.items()):
            points = [(runs[0]["train_frames"], *mean([value(run, of, measure) for run in runs])) for runs in cases]
            xs, ys, dys = zip(*sorted(points), strict=True)
            spread = [0.0 if dy != dy else dy for dy in dys]
            axis.errorbar(xs, ys, yerr=spread, color=COLOURS[number], marker=MARKERS[number], label=group, capsize=2)
        axis.axhline(value(untouched, of, measure), color="black", linewidth=0.8, linestyle="--", label="untouched")
        axis.set_xscale("log")
        sizes = sorted({runs[0]["train_frames"] for cases in groups.values() for runs in cases})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("training frames")
        axis.set_title(label, fontsize=9)
        axis.grid(visible=True, which="both", linewidth=0.3)
    figure.suptitle(plan.title, fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


_KINDS: dict[str, Callable[[Plan, Results, dict[str, Any]], Any]] = {
    "pareto": _pareto,
    "learning": _learning,
    "relaxations": draw_relaxations,
}
